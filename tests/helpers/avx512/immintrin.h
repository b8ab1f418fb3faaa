/* The AVX-512 intrinsics of the native CPU kernels in portable GNU C, for machines without AVX-512.
 *
 * Compiled with -I to this folder, native.c takes this file for the compiler's own <immintrin.h> and
 * then runs on any CPU, so that its tests do. Only what native.c uses is here: an intrinsic that is
 * missing is a compile error, and its definition belongs here.
 *
 * Every result has the bits that Intel's manual (Software Developer's Manual, volume 2) defines, with
 * the default rounding to nearest even, for all numbers, infinities and NaN, with these exceptions:
 * - Which NaN comes out where a NaN went in is not modelled; that it is a NaN is.
 * - `_mm512_dpbf16_ps` adds the odd element's product first, then the even one's, each as a fused
 *   multiply-add, takes denormal numbers for zero and gives zero for denormal results, as the manual
 *   says. A result is denormal here if it is after rounding to denormal numbers; the manual leaves
 *   open whether one that rounds up to the least normal number is.
 * - Sums over lanes are not instructions: they add in the order of the compiler's own header.
 *
 * Compile with -ffp-contract=off, as native.c itself must be. A fused multiply-add is the C library's
 * fmaf, which is exact everywhere, and fast where the compiler may use FMA instructions.
 */
#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>

/* What -mavx512bf16 and -mavx512vnni would define. */
#ifndef __AVX512BF16__
#define __AVX512BF16__ 1
#endif
#ifndef __AVX512VNNI__
#define __AVX512VNNI__ 1
#endif

#define EMULATED static inline __attribute__((always_inline, unused))
#define EACH_LANE for (int i = 0; i < 16; i++)

typedef float __m512 __attribute__((vector_size(64), may_alias));
typedef int64_t __m512i __attribute__((vector_size(64), may_alias));
typedef int16_t __m512bh __attribute__((vector_size(64), may_alias));
typedef int64_t __m256i __attribute__((vector_size(32), may_alias));
typedef int16_t __m256bh __attribute__((vector_size(32), may_alias));
typedef int64_t __m128i __attribute__((vector_size(16), may_alias));
typedef uint16_t __mmask16;

/* Lanes of the types above. */
typedef uint32_t Words __attribute__((vector_size(64), may_alias));
typedef int32_t Integers __attribute__((vector_size(64), may_alias));
typedef uint64_t LongWords __attribute__((vector_size(64), may_alias));

enum { _MM_HINT_T0 = 3 };
enum {
    _CMP_EQ_OQ = 0x00,
    _CMP_UNORD_Q = 0x03,
    _CMP_LT_OQ = 0x11,
    _CMP_NLT_UQ = 0x15,
    _CMP_GE_OQ = 0x1D,
    _CMP_GT_OQ = 0x1E,
};

#define _mm_prefetch(address, hint) __builtin_prefetch(address, 0, hint)

/* Constants and casts --------------------------------------------------------------------------*/

EMULATED __m512 _mm512_setzero_ps(void) { return (__m512){0}; }
EMULATED __m512i _mm512_setzero_si512(void) { return (__m512i){0}; }
EMULATED __m512i _mm512_castps_si512(__m512 a) { return (__m512i)a; }
EMULATED __m512 _mm512_castsi512_ps(__m512i a) { return (__m512)a; }

EMULATED __m512 _mm512_set1_ps(float a) {
    return (__m512){a, a, a, a, a, a, a, a, a, a, a, a, a, a, a, a};
}

EMULATED __m512i _mm512_set1_epi32(int a) {
    return (__m512i)(Integers){a, a, a, a, a, a, a, a, a, a, a, a, a, a, a, a};
}

EMULATED __m512i _mm512_setr_epi32(int a, int b, int c, int d, int e, int f, int g, int h, int i, int j,
                                   int k, int l, int m, int n, int o, int p) {
    return (__m512i)(Integers){a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p};
}

/* Masks: all bits of the lanes whose bit is set. ------------------------------------------------*/

EMULATED Integers lanes_of(__mmask16 mask) {
    const Integers bits = {1,       1 << 1,  1 << 2,  1 << 3,  1 << 4,  1 << 5,  1 << 6,  1 << 7,
                           1 << 8,  1 << 9,  1 << 10, 1 << 11, 1 << 12, 1 << 13, 1 << 14, 1 << 15};
    return ((Integers)_mm512_set1_epi32(mask) & bits) != 0;
}

/* b where the mask is set, else a. */
EMULATED Integers select_lanes(__mmask16 mask, Integers a, Integers b) {
    const Integers lanes = lanes_of(mask);
    return (b & lanes) | (a & ~lanes);
}

EMULATED __mmask16 mask_of(Integers lanes) {
    unsigned mask = 0;
    EACH_LANE mask |= (lanes[i] & 1u) << i;
    return mask;
}

EMULATED __m512 _mm512_mask_mov_ps(__m512 src, __mmask16 mask, __m512 a) {
    return (__m512)select_lanes(mask, (Integers)src, (Integers)a);
}

EMULATED __m512i _mm512_mask_mov_epi32(__m512i src, __mmask16 mask, __m512i a) {
    return (__m512i)select_lanes(mask, (Integers)src, (Integers)a);
}

EMULATED __m512 _mm512_maskz_mov_ps(__mmask16 mask, __m512 a) {
    return _mm512_mask_mov_ps(_mm512_setzero_ps(), mask, a);
}

/* Loads and stores. Masked ones touch only the memory of lanes whose bit is set. ------------------*/

EMULATED __m512 _mm512_loadu_ps(const void *from) {
    __m512 a;
    memcpy(&a, from, sizeof a);
    return a;
}

EMULATED __m512i _mm512_loadu_si512(const void *from) { return (__m512i)_mm512_loadu_ps(from); }
EMULATED void _mm512_storeu_ps(void *to, __m512 a) { memcpy(to, &a, sizeof a); }
EMULATED void _mm512_storeu_si512(void *to, __m512i a) { memcpy(to, &a, sizeof a); }

/* `size` bytes for each of 16 lanes. */
EMULATED void copy_lanes(void *to, const void *from, __mmask16 mask, const int size) {
    if (mask == 0xFFFF) memcpy(to, from, 16 * size);
    else EACH_LANE if (mask >> i & 1) memcpy((char *)to + i * size, (const char *)from + i * size, size);
}

EMULATED __m512 _mm512_maskz_loadu_ps(__mmask16 mask, const void *from) {
    __m512 a = {0};
    copy_lanes(&a, from, mask, 4);
    return a;
}

EMULATED __m512i _mm512_maskz_loadu_epi32(__mmask16 mask, const void *from) {
    return (__m512i)_mm512_maskz_loadu_ps(mask, from);
}

EMULATED __m256i _mm256_maskz_loadu_epi16(__mmask16 mask, const void *from) {
    __m256i a = {0};
    copy_lanes(&a, from, mask, 2);
    return a;
}

EMULATED void _mm512_mask_storeu_ps(void *to, __mmask16 mask, __m512 a) { copy_lanes(to, &a, mask, 4); }
EMULATED void _mm512_mask_storeu_epi32(void *to, __mmask16 mask, __m512i a) { copy_lanes(to, &a, mask, 4); }
EMULATED void _mm256_mask_storeu_epi16(void *to, __mmask16 mask, __m256i a) { copy_lanes(to, &a, mask, 2); }
EMULATED void _mm_mask_storeu_epi8(void *to, __mmask16 mask, __m128i a) { copy_lanes(to, &a, mask, 1); }

EMULATED __m512i _mm512_i32gather_epi32(__m512i index, const void *base, int scale) {
    Integers a;
    EACH_LANE {
        int32_t lane;
        memcpy(&lane, (const char *)base + (int64_t)((Integers)index)[i] * scale, sizeof lane);
        a[i] = lane;
    }
    return (__m512i)a;
}

/* Arithmetic of float32 -------------------------------------------------------------------------*/

EMULATED __m512 _mm512_add_ps(__m512 a, __m512 b) { return a + b; }
EMULATED __m512 _mm512_sub_ps(__m512 a, __m512 b) { return a - b; }
EMULATED __m512 _mm512_mul_ps(__m512 a, __m512 b) { return a * b; }
EMULATED __m512 _mm512_div_ps(__m512 a, __m512 b) { return a / b; }

EMULATED __m512 _mm512_mask_add_ps(__m512 src, __mmask16 mask, __m512 a, __m512 b) {
    return _mm512_mask_mov_ps(src, mask, a + b);
}

EMULATED __m512 _mm512_mask_sub_ps(__m512 src, __mmask16 mask, __m512 a, __m512 b) {
    return _mm512_mask_mov_ps(src, mask, a - b);
}

EMULATED __m512 _mm512_mask_div_ps(__m512 src, __mmask16 mask, __m512 a, __m512 b) {
    return _mm512_mask_mov_ps(src, mask, a / b);
}

EMULATED __m512 _mm512_maskz_sub_ps(__mmask16 mask, __m512 a, __m512 b) {
    return _mm512_maskz_mov_ps(mask, a - b);
}

EMULATED __m512 _mm512_fmadd_ps(__m512 a, __m512 b, __m512 c) {
    __m512 sum;
    EACH_LANE sum[i] = __builtin_fmaf(a[i], b[i], c[i]);
    return sum;
}

/* A change of sign is exact, also that of zero and NaN. */
EMULATED __m512 _mm512_fmsub_ps(__m512 a, __m512 b, __m512 c) { return _mm512_fmadd_ps(a, b, -c); }
EMULATED __m512 _mm512_fnmadd_ps(__m512 a, __m512 b, __m512 c) { return _mm512_fmadd_ps(-a, b, c); }

EMULATED __m512 _mm512_abs_ps(__m512 a) { return (__m512)((Words)a & 0x7FFFFFFF); }

/* b unless a is greater: b too if one of them is NaN, or both are zero. */
EMULATED __m512 _mm512_max_ps(__m512 a, __m512 b) {
    const Integers greater = a > b;
    return (__m512)(((Integers)a & greater) | ((Integers)b & ~greater));
}

EMULATED __m512 _mm512_mask_max_ps(__m512 src, __mmask16 mask, __m512 a, __m512 b) {
    return _mm512_mask_mov_ps(src, mask, _mm512_max_ps(a, b));
}

/* The upper half is added to the lower, again and again. */
EMULATED float _mm512_reduce_add_ps(__m512 a) {
    float lanes[16];
    memcpy(lanes, &a, sizeof lanes);
    for (int half = 8; half; half /= 2)
        for (int i = 0; i < half; i++) lanes[i] += lanes[i + half];
    return lanes[0];
}

EMULATED float _mm512_reduce_max_ps(__m512 a) {
    float lanes[16];
    memcpy(lanes, &a, sizeof lanes);
    /* The compiler's header gives the upper half first at the start, and the lower one then. */
    for (int i = 0; i < 8; i++) lanes[i] = lanes[i + 8] > lanes[i] ? lanes[i + 8] : lanes[i];
    for (int i = 0; i < 4; i++) lanes[i] = lanes[i + 4] > lanes[i] ? lanes[i + 4] : lanes[i];
    for (int half = 2; half; half /= 2)
        for (int i = 0; i < half; i++) lanes[i] = lanes[i] > lanes[i + half] ? lanes[i] : lanes[i + half];
    return lanes[0];
}

/* As a function it would need the operands of a comparison that is not known yet. */
EMULATED __mmask16 _mm512_cmp_ps_mask(__m512 a, __m512 b, const int comparison) {
    switch (comparison) { /* ordered: false if one of them is NaN */
        case _CMP_EQ_OQ: return mask_of(a == b);
        case _CMP_UNORD_Q: return mask_of((a != a) | (b != b));
        case _CMP_LT_OQ: return mask_of(a < b);
        case _CMP_NLT_UQ: return mask_of(~(a < b));
        case _CMP_GT_OQ: return mask_of(a > b);
        case _CMP_GE_OQ: return mask_of(a >= b);
        default: __builtin_trap();
    }
}

/* Integers --------------------------------------------------------------------------------------*/

EMULATED __m512i _mm512_add_epi32(__m512i a, __m512i b) { return (__m512i)((Words)a + (Words)b); }
EMULATED __m512i _mm512_sub_epi32(__m512i a, __m512i b) { return (__m512i)((Words)a - (Words)b); }
EMULATED __m512i _mm512_mullo_epi32(__m512i a, __m512i b) { return (__m512i)((Words)a * (Words)b); }
EMULATED __m512i _mm512_or_si512(__m512i a, __m512i b) { return a | b; }
EMULATED __m512i _mm512_xor_si512(__m512i a, __m512i b) { return a ^ b; }

/* The whole products of the lower words of 64 bits. */
EMULATED __m512i _mm512_mul_epu32(__m512i a, __m512i b) {
    return (__m512i)(((LongWords)a & 0xFFFFFFFF) * ((LongWords)b & 0xFFFFFFFF));
}

/* The counts of bits are literals below the width. */
EMULATED __m512i _mm512_slli_epi32(__m512i a, unsigned bits) { return (__m512i)((Words)a << bits); }
EMULATED __m512i _mm512_srli_epi32(__m512i a, unsigned bits) { return (__m512i)((Words)a >> bits); }
EMULATED __m512i _mm512_srai_epi32(__m512i a, unsigned bits) { return (__m512i)((Integers)a >> bits); }
EMULATED __m512i _mm512_srli_epi64(__m512i a, unsigned bits) { return (__m512i)((LongWords)a >> bits); }

/* Four products of an unsigned byte of a and a signed one of b for each sum; the sum wraps around. */
EMULATED __m512i _mm512_dpbusd_epi32(__m512i sum, __m512i a, __m512i b) {
    Words total = (Words)sum;
    for (int part = 0; part < 4; part++) {
        const Integers x = (Integers)((Words)a >> 8 * part & 0xFF);
        const Integers w = (Integers)((Words)b << (24 - 8 * part)) >> 24;
        total += (Words)(x * w);
    }
    return (__m512i)total;
}

/* Conversions -----------------------------------------------------------------------------------*/

EMULATED __m512 _mm512_cvtepi32_ps(__m512i a) { return __builtin_convertvector((Integers)a, __m512); }

/* To the nearest, the even one of two; what does not fit is the least integer. */
EMULATED __m512i _mm512_cvtps_epi32(__m512 a) {
    Integers whole;
    EACH_LANE {
        const float nearest = nearbyintf(a[i]);
        whole[i] = nearest >= -0x1p31f && nearest < 0x1p31f ? (int32_t)nearest : INT32_MIN;
    }
    return (__m512i)whole;
}

/* The lower byte of each. */
EMULATED __m128i _mm512_cvtepi32_epi8(__m512i a) {
    typedef uint8_t Bytes __attribute__((vector_size(16)));
    return (__m128i)__builtin_convertvector((Words)a, Bytes);
}

typedef uint16_t Halves __attribute__((vector_size(32)));

EMULATED __m512i _mm512_cvtepu16_epi32(__m256i a) {
    return (__m512i)__builtin_convertvector((Halves)a, Words);
}

/* Zero with the number's sign for denormal numbers. */
EMULATED __m512 flush_denormals(__m512 a) {
    const Integers normal = ((Integers)a & 0x7F800000) != 0;
    return (__m512)((Integers)a & (normal | INT32_MIN));
}

/* To the nearest, the even one of two; denormal numbers are zero, and a NaN is a quiet one. */
EMULATED __m256bh _mm512_cvtneps_pbh(__m512 a) {
    const Words bits = (Words)flush_denormals(a);
    const Words rounded = bits + 0x7FFF + (bits >> 16 & 1), quiet = bits | 0x400000;
    const Words nan = (Words)(a != a);
    return (__m256bh)__builtin_convertvector(((quiet & nan) | (rounded & ~nan)) >> 16, Halves);
}

EMULATED __m512 _mm512_dpbf16_ps(__m512 sum, __m512bh a, __m512bh b) {
    const Words x = (Words)a, y = (Words)b;
    sum = flush_denormals(sum);
    sum = _mm512_fmadd_ps(flush_denormals((__m512)(x & 0xFFFF0000)), flush_denormals((__m512)(y & 0xFFFF0000)), sum);
    sum = flush_denormals(sum);
    sum = _mm512_fmadd_ps(flush_denormals((__m512)(x << 16)), flush_denormals((__m512)(y << 16)), sum);
    return flush_denormals(sum);
}

/* Shuffles. Their names' 128-bit lanes are groups of four elements of 32 bits. --------------------*/

EMULATED __m512i _mm512_unpacklo_epi32(__m512i a, __m512i b) {
    const Integers order = {0, 16, 1, 17, 4, 20, 5, 21, 8, 24, 9, 25, 12, 28, 13, 29};
    return (__m512i)__builtin_shuffle((Integers)a, (Integers)b, order);
}

EMULATED __m512i _mm512_unpackhi_epi32(__m512i a, __m512i b) {
    const Integers order = {2, 18, 3, 19, 6, 22, 7, 23, 10, 26, 11, 27, 14, 30, 15, 31};
    return (__m512i)__builtin_shuffle((Integers)a, (Integers)b, order);
}

EMULATED __m512 _mm512_unpacklo_ps(__m512 a, __m512 b) {
    return (__m512)_mm512_unpacklo_epi32((__m512i)a, (__m512i)b);
}

EMULATED __m512 _mm512_unpackhi_ps(__m512 a, __m512 b) {
    return (__m512)_mm512_unpackhi_epi32((__m512i)a, (__m512i)b);
}

EMULATED __m512i _mm512_unpacklo_epi64(__m512i a, __m512i b) {
    const __m512i order = {0, 8, 2, 10, 4, 12, 6, 14};
    return __builtin_shuffle(a, b, order);
}

EMULATED __m512i _mm512_unpackhi_epi64(__m512i a, __m512i b) {
    const __m512i order = {1, 9, 3, 11, 5, 13, 7, 15};
    return __builtin_shuffle(a, b, order);
}

/* In each group, two elements of a and then two of b, which two bits of `order` each pick. */
EMULATED __m512 _mm512_shuffle_ps(__m512 a, __m512 b, const int order) {
    Integers from;
    EACH_LANE from[i] = (i & 12) + (order >> 2 * (i & 3) & 3) + (i & 2 ? 16 : 0);
    return __builtin_shuffle(a, b, from);
}

/* Two groups of a and then two of b, which two bits of `order` each pick. */
EMULATED __m512i _mm512_shuffle_i32x4(__m512i a, __m512i b, const int order) {
    Integers from;
    EACH_LANE from[i] = 4 * (order >> 2 * (i >> 2) & 3) + (i & 3) + (i & 8 ? 16 : 0);
    return (__m512i)__builtin_shuffle((Integers)a, (Integers)b, from);
}

EMULATED __m512 _mm512_shuffle_f32x4(__m512 a, __m512 b, const int order) {
    return (__m512)_mm512_shuffle_i32x4((__m512i)a, (__m512i)b, order);
}
