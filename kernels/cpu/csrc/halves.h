/* The AVX-512 intrinsics that native.c needs for float32, each as two of AVX2 and FMA: the same bits on
 * CPUs without AVX-512, but for which NaN comes out where a NaN went in. What is missing here is a
 * compile error.
 */
#include <immintrin.h>
#include <stdint.h>

typedef struct { __m256 low, high; } Floats;
typedef struct { __m256i low, high; } Words;
#define __m512 Floats
#define __m512i Words

#define HALVES static inline __attribute__((always_inline, unused))

/* An instruction's own macro or function on both halves. */
#define ONE(f, a) ({ __auto_type a_ = (a); (__typeof__(a_)){f(a_.low), f(a_.high)}; })
#define TWO(f, a, b) \
    ({ __auto_type a_ = (a); __auto_type b_ = (b); (__typeof__(a_)){f(a_.low, b_.low), f(a_.high, b_.high)}; })
#define THREE(f, a, b, c) \
    ({ __auto_type a_ = (a); __auto_type b_ = (b); __auto_type c_ = (c); \
       (Floats){f(a_.low, b_.low, c_.low), f(a_.high, b_.high, c_.high)}; })
#define SHIFT(f, a, bits) ({ __auto_type a_ = (a); (Words){f(a_.low, bits), f(a_.high, bits)}; })

#define _mm512_add_ps(a, b) TWO(_mm256_add_ps, a, b)
#define _mm512_sub_ps(a, b) TWO(_mm256_sub_ps, a, b)
#define _mm512_mul_ps(a, b) TWO(_mm256_mul_ps, a, b)
#define _mm512_div_ps(a, b) TWO(_mm256_div_ps, a, b)
#define _mm512_max_ps(a, b) TWO(_mm256_max_ps, a, b)
#define _mm512_fmadd_ps(a, b, c) THREE(_mm256_fmadd_ps, a, b, c)
#define _mm512_fmsub_ps(a, b, c) THREE(_mm256_fmsub_ps, a, b, c)
#define _mm512_fnmadd_ps(a, b, c) THREE(_mm256_fnmadd_ps, a, b, c)
#define _mm512_add_epi32(a, b) TWO(_mm256_add_epi32, a, b)
#define _mm512_sub_epi32(a, b) TWO(_mm256_sub_epi32, a, b)
#define _mm512_mullo_epi32(a, b) TWO(_mm256_mullo_epi32, a, b)
#define _mm512_mul_epu32(a, b) TWO(_mm256_mul_epu32, a, b)
#define _mm512_xor_si512(a, b) TWO(_mm256_xor_si256, a, b)
#define _mm512_slli_epi32(a, bits) SHIFT(_mm256_slli_epi32, a, bits)
#define _mm512_srli_epi32(a, bits) SHIFT(_mm256_srli_epi32, a, bits)
#define _mm512_srai_epi32(a, bits) SHIFT(_mm256_srai_epi32, a, bits)
#define _mm512_srli_epi64(a, bits) SHIFT(_mm256_srli_epi64, a, bits)
/* In each 128 bits by themselves, so halves are as good as the whole. */
#define _mm512_unpacklo_ps(a, b) TWO(_mm256_unpacklo_ps, a, b)
#define _mm512_unpackhi_ps(a, b) TWO(_mm256_unpackhi_ps, a, b)
#define _mm512_unpacklo_epi32(a, b) TWO(_mm256_unpacklo_epi32, a, b)
#define _mm512_unpackhi_epi32(a, b) TWO(_mm256_unpackhi_epi32, a, b)
#define _mm512_unpacklo_epi64(a, b) TWO(_mm256_unpacklo_epi64, a, b)
#define _mm512_unpackhi_epi64(a, b) TWO(_mm256_unpackhi_epi64, a, b)
#define _mm512_shuffle_ps(a, b, order) \
    ({ __auto_type a_ = (a); __auto_type b_ = (b); \
       (Floats){_mm256_shuffle_ps(a_.low, b_.low, order), _mm256_shuffle_ps(a_.high, b_.high, order)}; })

#define _mm512_set1_ps(a) \
    ({ const __m256 all_ = _mm256_set1_ps(a); (Floats){all_, all_}; })
#define _mm512_set1_epi32(a) \
    ({ const __m256i all_ = _mm256_set1_epi32(a); (Words){all_, all_}; })
#define _mm512_setzero_ps() ((Floats){_mm256_setzero_ps(), _mm256_setzero_ps()})
#define _mm512_setzero_si512() ((Words){_mm256_setzero_si256(), _mm256_setzero_si256()})
#undef _mm512_setr_epi32
#define _mm512_setr_epi32(a, b, c, d, e, f, g, h, ...) \
    ((Words){_mm256_setr_epi32(a, b, c, d, e, f, g, h), _mm256_setr_epi32(__VA_ARGS__)})
#define _mm512_castps_si512(a) \
    ({ const Floats a_ = (a); (Words){_mm256_castps_si256(a_.low), _mm256_castps_si256(a_.high)}; })
#define _mm512_castsi512_ps(a) \
    ({ const Words a_ = (a); (Floats){_mm256_castsi256_ps(a_.low), _mm256_castsi256_ps(a_.high)}; })
#define _mm512_cvtepi32_ps(a) \
    ({ const Words a_ = (a); (Floats){_mm256_cvtepi32_ps(a_.low), _mm256_cvtepi32_ps(a_.high)}; })

/* Masks: all bits of the lanes whose bit is set. ------------------------------------------------*/

HALVES Words lanes_of(__mmask16 mask) {
    const __m256i bits = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
    const __m256i low = _mm256_set1_epi32(mask & 0xFF), high = _mm256_set1_epi32(mask >> 8);
    return (Words){_mm256_cmpeq_epi32(_mm256_and_si256(low, bits), bits),
                   _mm256_cmpeq_epi32(_mm256_and_si256(high, bits), bits)};
}

#define _mm512_cmp_ps_mask(a, b, comparison) \
    ({ const Floats a_ = (a), b_ = (b); \
       (__mmask16)(_mm256_movemask_ps(_mm256_cmp_ps(a_.low, b_.low, comparison)) | \
                   _mm256_movemask_ps(_mm256_cmp_ps(a_.high, b_.high, comparison)) << 8); })

#define _mm512_mask_mov_ps halves_select
HALVES Floats _mm512_mask_mov_ps(Floats src, __mmask16 mask, Floats a) {
    const Floats lanes = _mm512_castsi512_ps(lanes_of(mask));
    return (Floats){_mm256_blendv_ps(src.low, a.low, lanes.low), _mm256_blendv_ps(src.high, a.high, lanes.high)};
}

#define _mm512_maskz_mov_ps(mask, a) _mm512_mask_mov_ps(_mm512_setzero_ps(), mask, a)
#define _mm512_mask_mov_epi32(src, mask, a) \
    _mm512_castps_si512(_mm512_mask_mov_ps(_mm512_castsi512_ps(src), mask, _mm512_castsi512_ps(a)))
#define _mm512_mask_add_ps(src, mask, a, b) _mm512_mask_mov_ps(src, mask, _mm512_add_ps(a, b))
#define _mm512_mask_sub_ps(src, mask, a, b) _mm512_mask_mov_ps(src, mask, _mm512_sub_ps(a, b))
#define _mm512_mask_div_ps(src, mask, a, b) _mm512_mask_mov_ps(src, mask, _mm512_div_ps(a, b))
#define _mm512_mask_max_ps(src, mask, a, b) _mm512_mask_mov_ps(src, mask, _mm512_max_ps(a, b))
#define _mm512_maskz_sub_ps(mask, a, b) _mm512_maskz_mov_ps(mask, _mm512_sub_ps(a, b))

/* Loads and stores. Masked ones touch only the memory of lanes whose bit is set. ------------------*/

#define _mm512_loadu_ps halves_load
HALVES Floats _mm512_loadu_ps(const void *from) {
    return (Floats){_mm256_loadu_ps(from), _mm256_loadu_ps((const float *)from + 8)};
}

#define _mm512_storeu_ps halves_store
HALVES void _mm512_storeu_ps(void *to, Floats a) {
    _mm256_storeu_ps(to, a.low);
    _mm256_storeu_ps((float *)to + 8, a.high);
}

#define _mm512_maskz_loadu_ps halves_load_lanes
HALVES Floats _mm512_maskz_loadu_ps(__mmask16 mask, const void *from) {
    if (mask == 0xFFFF) return _mm512_loadu_ps(from);
    const Words lanes = lanes_of(mask);
    return (Floats){_mm256_maskload_ps(from, lanes.low), _mm256_maskload_ps((const float *)from + 8, lanes.high)};
}

#define _mm512_mask_storeu_ps halves_store_lanes
HALVES void _mm512_mask_storeu_ps(void *to, __mmask16 mask, Floats a) {
    if (mask == 0xFFFF) return _mm512_storeu_ps(to, a);
    const Words lanes = lanes_of(mask);
    _mm256_maskstore_ps(to, lanes.low, a.low);
    _mm256_maskstore_ps((float *)to + 8, lanes.high, a.high);
}

#define _mm512_loadu_si512(from) _mm512_castps_si512(_mm512_loadu_ps(from))
#define _mm512_storeu_si512(to, a) _mm512_storeu_ps(to, _mm512_castsi512_ps(a))
#define _mm512_maskz_loadu_epi32(mask, from) _mm512_castps_si512(_mm512_maskz_loadu_ps(mask, from))

#define _mm512_i32gather_epi32(index, from, scale) \
    ({ const Words i_ = (index); const int *from_ = (const int *)(from); \
       (Words){_mm256_i32gather_epi32(from_, i_.low, scale), _mm256_i32gather_epi32(from_, i_.high, scale)}; })

/* Functions of float32 --------------------------------------------------------------------------*/

#define _mm512_abs_ps(a) ONE(halves_abs, a)
HALVES __m256 halves_abs(__m256 a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a); }

/* Sums and maxima of lanes, in the order of the compiler's own header. */
#define _mm512_reduce_add_ps halves_sum
#define _mm512_reduce_max_ps halves_largest
#define REDUCTION(name, of_256, of_128) \
    HALVES float name(Floats a) { \
        const __m256 half = of_256(a.high, a.low); \
        const __m128 quarter = of_128(_mm256_extractf128_ps(half, 1), _mm256_castps256_ps128(half)); \
        const __m128 pair = of_128(quarter, _mm_movehl_ps(quarter, quarter)); \
        return _mm_cvtss_f32(of_128(pair, _mm_movehdup_ps(pair))); \
    }
REDUCTION(_mm512_reduce_add_ps, _mm256_add_ps, _mm_add_ps)
REDUCTION(_mm512_reduce_max_ps, _mm256_max_ps, _mm_max_ps)

/* Two 128 bits of a and then two of b, which two bits of `order` each pick. */
#define _mm512_shuffle_f32x4(a, b, order) \
    ({ const Floats a_ = (a), b_ = (b); \
       (Floats){halves_quarters(a_, (order) & 3, (order) >> 2 & 3), halves_quarters(b_, (order) >> 4 & 3, (order) >> 6 & 3)}; })
HALVES __m256 halves_quarters(Floats a, const int first, const int second) {
    const __m256 x = first & 2 ? a.high : a.low, y = second & 2 ? a.high : a.low;
    const __m128 p = first & 1 ? _mm256_extractf128_ps(x, 1) : _mm256_castps256_ps128(x);
    const __m128 q = second & 1 ? _mm256_extractf128_ps(y, 1) : _mm256_castps256_ps128(y);
    return _mm256_set_m128(q, p);
}

#define _mm512_shuffle_i32x4(a, b, order) \
    _mm512_castps_si512(_mm512_shuffle_f32x4(_mm512_castsi512_ps(a), _mm512_castsi512_ps(b), order))
