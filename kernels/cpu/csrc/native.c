/* Bark's operations on CPUs with AVX-512, or with AVX2 by `halves.h`: the products of a transformer
 * block and its attention.
 *
 * `native.py` compiles this file and says what each function takes; `native.h` holds the operations,
 * written once for two types: float32, and bfloat16 with float32 sums (vdpbf16ps).
 *
 * Products. A weight [N, K] is packed in panels of 32 rows, in each k by k (bfloat16: two by two),
 * so that a step of k reads two vectors of 16 outputs and one broadcast of x a row. One row reads
 * the weights once, straight through, at the memory's bandwidth; more rows reuse a panel from the
 * cache, up to 12 at a time in registers.
 *
 * Each output adds its terms in the order of k, in blocks of BLOCK_K whose sums are then added (those of
 * bytes are exact in any order), so its bits do not depend on how many rows there are, on their order, or
 * on the number of threads.
 *
 * Attention of many queries packs the keys and values of each head in the same panels and uses the
 * same product: scores of 12 queries, softmax, product with the values (Vaswani et al. 2017, eq. 1).
 * Attention of one query reads keys and values where they lie.
 *
 * An operation is a struct of 64-bit words that Python fills in, and `run` (team.h) takes any number of them: a
 * whole decode step is recorded once and then one call, as a CUDA graph is on a GPU.
 *
 * `run` returns 0, or -1 where there is no memory left. Threads are `team.h`'s.
 */
#if defined __AVX512BW__ || defined EMULATED_AVX512 /* which tests do */
#include <immintrin.h>
#else
#define BY_HALVES
#include "halves.h"
#endif
#include <float.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum {
    PANEL = 32,
#ifdef BY_HALVES
    MAX_ROWS = 3, /* four sums each, of 16 registers of half the width; the others hold the weights and x */
#else
    MAX_ROWS = 12, /* two sums each, of 32 registers; three of the others hold the weights and x */
#endif
    ROWS_A_TILE = 192, /* with a panel of Bark's sizes most fit the second cache; 3 % faster than 384 in int8 */
    BLOCK_K = 256,
    AHEAD = 2048, /* bytes: the processor itself does not fetch beyond the end of a page */
};

#define INLINE static inline __attribute__((always_inline))

typedef int64_t i64;

INLINE i64 ceil_div(i64 a, i64 b) { return (a + b - 1) / b; }
INLINE i64 min_of(i64 a, i64 b) { return a < b ? a : b; }
INLINE i64 max_of(i64 a, i64 b) { return a > b ? a : b; }

/* Operations: what `run` takes. All members have 64 bits, and operations lie WORDS words apart. Python
 * has the same structs (operations.py) and compares them with `layouts` when it loads the library. */

enum { WORDS = 40 };

#define EMBEDDING_MEMBERS(M) \
    M(i64, kind) M(i64, half) \
    M(char *, y) \
    M(const i64 *, ids) /* [streams, rows], ids_stride apart */ \
    M(const char *, tables) M(const i64 *, positions) M(const char *, position_table) \
    M(i64, streams) M(i64, rows) M(i64, width) M(i64, ids_stride) M(i64, table_stride)

#define LINEAR_MEMBERS(M) \
    M(i64, kind) M(i64, half) \
    M(char *, y) M(const char *, x) M(const char *, panels) \
    M(const float *, scales)   /* of bytes, one an output; NULL where the weights are no bytes */ \
    M(const int32_t *, excess) /* what the 128 in each byte of x adds to an output's sum */ \
    M(const char *, bias) M(const char *, norm_weight) M(const char *, norm_bias) /* or NULL */ \
    M(const char *, residual) /* or NULL */ \
    M(double, eps) M(i64, gelu) M(i64, elu) /* of the product; of the sum with the residual */ \
    M(i64, rows) M(i64, n) M(i64, k) \
    M(i64, x_stride) /* numbers: less than k in a convolution, whose windows overlap */ \
    /* Where a projection's keys and values go, [P, heads, page_size, d]; NULL for other products. */ \
    M(char *, k_pages) M(char *, v_pages) \
    M(const i64 *, slot_mapping) /* page * page_size + offset of each row; -1 nowhere */ \
    M(i64, heads) M(i64, page_size) M(i64, d)

#define ATTENTION_MEMBERS(M) \
    M(i64, kind) M(i64, half) \
    M(char *, out) M(const char *, q) M(const char *, keys) M(const char *, values) M(i64, q_stride) \
    M(const i64 *, tables) M(const i64 *, starts) M(const i64 *, lengths) \
    M(i64, batch) M(i64, max_pages) M(i64, page_size) M(i64, heads) M(i64, d)

#define SAMPLE_MEMBERS(M) \
    M(i64, kind) M(i64, half) \
    M(i64 *, chosen) M(const char *, logits) M(i64, rows) M(i64, columns) \
    M(const float *, temperature) M(const float *, top_p) \
    M(const i64 *, top_k) M(const i64 *, seeds) M(const i64 *, positions) \
    M(const float *, min_eos_p) /* NULL where there is no end token */ \
    M(const i64 *, min_new_tokens)   /* before so many the end token is impossible; NULL for always possible */ \
    M(const i64 *, suno_rules) /* SamplingMetadata */ \
    M(i64, stage) M(i64, n_ranges) M(i64, range_size) \
    /* DecodeState; finished is NULL where there is none. */ \
    M(int32_t *, finished) M(i64 *, token_ids) M(i64 *, state_positions) M(i64 *, seq_lens) \
    M(i64 *, slot_mapping) M(i64 *, num_generated) M(const i64 *, limits) M(const i64 *, tables) M(i64 *, history) \
    M(i64, max_pages) M(i64, page_size) M(i64, history_width) M(i64, first_id)

#define PACK_MEMBERS(M) \
    M(i64, kind) M(i64, half) \
    M(char *, panels) M(const char *, weight) /* [n, k], of the type that `half` says */ \
    M(float *, scales) M(int32_t *, excess) /* of the panels of bytes that it becomes, one an output; or NULL */ \
    M(i64, n) M(i64, k)

#define ELU_MEMBERS(M) \
    M(i64, kind) M(i64, half) \
    M(char *, y) M(const char *, x) M(const char *, residual) /* or NULL */ M(i64, n)

#define LSTM_MEMBERS(M) \
    M(i64, kind) M(i64, half) \
    M(char *, y) /* [steps, width] */ \
    M(const char *, x) /* [steps, 4 width]: what the input and the biases add to the gates */ \
    M(const char *, panels) /* [4 width, width], of the state before */ \
    M(i64, steps) M(i64, width)

#define KINDS(K) \
    K(EMBEDDING_SUM, EMBEDDING_MEMBERS) K(LINEAR, LINEAR_MEMBERS) K(PAGED_ATTENTION, ATTENTION_MEMBERS) \
    K(DECODE_ATTENTION, ATTENTION_MEMBERS) K(BIDIRECTIONAL_ATTENTION, ATTENTION_MEMBERS) K(SAMPLE, SAMPLE_MEMBERS) \
    K(PACK, PACK_MEMBERS) K(ELU, ELU_MEMBERS) K(LSTM, LSTM_MEMBERS)

#define DECLARED(type, name) type name;
#define DESCRIBED(type, name) ";" #type " " #name
#define ENUMERATED(kind, members) kind,
#define ON_A_LINE(kind, members) #kind members(DESCRIBED) "\n"

enum { KINDS(ENUMERATED) };
typedef struct { EMBEDDING_MEMBERS(DECLARED) } Embedding;
typedef struct { LINEAR_MEMBERS(DECLARED) } Linear;
typedef struct { ATTENTION_MEMBERS(DECLARED) } Attention;
typedef struct { SAMPLE_MEMBERS(DECLARED) } Sample;
typedef struct { PACK_MEMBERS(DECLARED) } Pack;
typedef struct { ELU_MEMBERS(DECLARED) } Elu;
typedef struct { LSTM_MEMBERS(DECLARED) } Lstm;

/* The kinds in their order, a line each with the members of its struct in theirs. */
const char *layouts(void) { return KINDS(ON_A_LINE); }

/* Keys and values of sequences; tables is NULL where sequence b has one page, b. */
typedef struct {
    const char *keys, *values;
    const i64 *tables; /* [B, max_pages] */
    i64 max_pages, page_size, page_stride, head_stride, token_stride; /* strides in numbers */
} Source;

/* Keys beside each other lie like the queries: one "page" a sequence, heads side by side. */
static Source source_of(const Attention *a) {
    if (a->kind == BIDIRECTIONAL_ATTENTION)
        return (Source){a->keys, a->values, NULL, 0, a->page_size, a->page_size * a->q_stride, a->d, a->q_stride};
    const i64 head = a->page_size * a->d;
    return (Source){a->keys, a->values, a->tables, a->max_pages, a->page_size, a->heads * head, head, a->d};
}

/* The first number of key or value j of head h of sequence b. */
INLINE i64 place(const Source *s, i64 b, i64 h, i64 j) {
    const i64 page = s->tables ? s->tables[b * s->max_pages + j / s->page_size] : b;
    return page * s->page_stride + h * s->head_stride + j % s->page_size * s->token_stride;
}

#include "team.h"

INLINE __mmask16 first_lanes(i64 n) { return n >= 16 ? 0xFFFF : n <= 0 ? 0 : (1u << n) - 1; }

/* exp(x) for x <= 0: 2^n times a polynomial in the rest, which is Taylor's: to the 7th power, or where
 * a relative 6e-5 suffices (`half`: what is rounded to bfloat16 afterwards) to the 4th. Below -86 it is
 * exp(-86) = 4e-38, because normal numbers end there. */
INLINE __m512 exp_of(__m512 x, const int half) {
    static const float terms[] = {1.0f / 5040, 1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f};
    const __m512 whole = _mm512_set1_ps(0x1.8p23f); /* float32 has no fractions there: adding it rounds */
    x = _mm512_max_ps(x, _mm512_set1_ps(-86.0f));
    const __m512 shifted = _mm512_fmadd_ps(x, _mm512_set1_ps(1.44269504f), whole), n = _mm512_sub_ps(shifted, whole);
    __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(half ? 0.693147181f : 0.693359375f), x);
    if (!half) r = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4f), r); /* ln 2 in two parts */
    __m512 p = _mm512_set1_ps(terms[half ? 3 : 0]);
    for (int i = half ? 4 : 1; i < 8; i++) p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(terms[i]));
    /* n is in the low bits of `shifted`, and what lies above them falls out. */
    const __m512i power = _mm512_slli_epi32(_mm512_castps_si512(shifted), 23);
    return _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(p), power));
}

/* Lane j of the result is the sum of the lanes of v[j]. */
INLINE __m512 sum_each(const __m512 v[16]) {
    __m512 quads[4];
    for (int i = 0; i < 4; i++) { /* four vectors to one, that holds each one's sum a 128-bit lane */
        const __m512 *f = v + 4 * i;
        const __m512 a = _mm512_add_ps(_mm512_unpacklo_ps(f[0], f[1]), _mm512_unpackhi_ps(f[0], f[1]));
        const __m512 b = _mm512_add_ps(_mm512_unpacklo_ps(f[2], f[3]), _mm512_unpackhi_ps(f[2], f[3]));
        quads[i] = _mm512_add_ps(_mm512_shuffle_ps(a, b, 0x44), _mm512_shuffle_ps(a, b, 0xEE));
    }
    const __m512 a = _mm512_add_ps(_mm512_shuffle_f32x4(quads[0], quads[1], 0x88), _mm512_shuffle_f32x4(quads[0], quads[1], 0xDD));
    const __m512 b = _mm512_add_ps(_mm512_shuffle_f32x4(quads[2], quads[3], 0x88), _mm512_shuffle_f32x4(quads[2], quads[3], 0xDD));
    return _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xDD));
}

/* log x of a positive, normal x: the mantissa m in [3/4, 3/2) by 2 artanh((m - 1) / (m + 1)). */
INLINE __m512 log_of(__m512 x) {
    const __m512 one = _mm512_set1_ps(1.0f);
    const __m512i bits = _mm512_castps_si512(x), least = _mm512_set1_epi32(0x3F400000); /* of 3/4 */
    const __m512i power = _mm512_srai_epi32(_mm512_sub_epi32(bits, least), 23);
    const __m512 n = _mm512_cvtepi32_ps(power);
    const __m512 m = _mm512_castsi512_ps(_mm512_sub_epi32(bits, _mm512_slli_epi32(power, 23)));
    const __m512 s = _mm512_div_ps(_mm512_sub_ps(m, one), _mm512_add_ps(m, one)), z = _mm512_mul_ps(s, s);
    __m512 p = _mm512_set1_ps(2.0f / 11);
    const float terms[] = {2.0f / 9, 2.0f / 7, 2.0f / 5, 2.0f / 3};
    for (int i = 0; i < 4; i++) p = _mm512_fmadd_ps(p, z, _mm512_set1_ps(terms[i]));
    p = _mm512_mul_ps(_mm512_mul_ps(p, z), s);
    p = _mm512_fmadd_ps(n, _mm512_set1_ps(-2.12194440e-4f), p); /* ln 2 in two parts, as above */
    p = _mm512_fmadd_ps(s, _mm512_set1_ps(2.0f), p);
    return _mm512_fmadd_ps(n, _mm512_set1_ps(0.693359375f), p);
}

/* x (1 + erf(x / sqrt 2)) / 2. erf t is t times a polynomial in t^2 up to 1; above, 1 - exp(-t^2)
 * times one in 1 / (1 + t / 2). Both are least-squares fits at Chebyshev points; erf is within 1.5e-7. */
INLINE __m512 gelu_of(__m512 x, const int half) {
    static const float inner[] = {-9.59150653e-06f, 0.000112413101f, -0.000848094251f, 0.00522083537f,
                                  -0.0268653682f,   0.112837816f,    -0.376126384f,    1.12837917f};
    static const float outer[] = {0.118970002f, -0.469256447f, 0.5593178f,  -0.0993794744f,
                                  0.345189088f, 0.26062498f,   0.28473106f, -0.000139519873f};
    const __m512 one = _mm512_set1_ps(1.0f), half_x = _mm512_mul_ps(x, _mm512_set1_ps(0.5f));
    const __m512 t = _mm512_abs_ps(_mm512_mul_ps(x, _mm512_set1_ps(0.707106781f))), z = _mm512_mul_ps(t, t);
    const __m512 s = _mm512_div_ps(one, _mm512_fmadd_ps(t, _mm512_set1_ps(0.5f), one));
    __m512 a = _mm512_set1_ps(inner[0]), b = _mm512_set1_ps(outer[0]);
    for (int i = 1; i < 8; i++) {
        a = _mm512_fmadd_ps(a, z, _mm512_set1_ps(inner[i]));
        b = _mm512_fmadd_ps(b, s, _mm512_set1_ps(outer[i]));
    }
    b = _mm512_fnmadd_ps(exp_of(_mm512_sub_ps(_mm512_setzero_ps(), z), half), b, one);
    a = _mm512_mask_mov_ps(_mm512_mul_ps(a, t), _mm512_cmp_ps_mask(t, one, _CMP_GE_OQ), b);
    const __mmask16 negative = _mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_LT_OQ);
    a = _mm512_mask_sub_ps(a, negative, _mm512_setzero_ps(), a);
    return _mm512_fmadd_ps(half_x, a, half_x);
}

/* x where it is positive or no number, else exp(x) - 1 (Clevert et al. 2016). */
INLINE __m512 elu_of(__m512 x) {
    const __mmask16 kept = _mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_NLT_UQ);
    return _mm512_mask_mov_ps(_mm512_sub_ps(exp_of(_mm512_sub_ps(_mm512_setzero_ps(), _mm512_abs_ps(x)), 0), _mm512_set1_ps(1.0f)), kept, x);
}

/* 1 / (1 + exp(-x)). */
INLINE __m512 sigmoid_of(__m512 x) {
    const __m512 one = _mm512_set1_ps(1.0f), zero = _mm512_setzero_ps();
    const __m512 e = exp_of(_mm512_sub_ps(zero, _mm512_abs_ps(x)), 0), below = _mm512_div_ps(e, _mm512_add_ps(one, e));
    const __m512 v = _mm512_mask_mov_ps(below, _mm512_cmp_ps_mask(x, zero, _CMP_GT_OQ), _mm512_sub_ps(one, below));
    return _mm512_mask_mov_ps(v, _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q), x);
}

INLINE __m512 tanh_of(__m512 x) {
    const __m512 one = _mm512_set1_ps(1.0f);
    return _mm512_sub_ps(_mm512_mul_ps(_mm512_set1_ps(2.0f), sigmoid_of(_mm512_add_ps(x, x))), one);
}

/* Sampling, of one row of float32 ---------------------------------------------------------------*/

INLINE float max_of_row(const float *values, i64 n) {
    __m512 best = _mm512_set1_ps(-INFINITY);
    for (i64 j = 0; j < n; j += 16) best = _mm512_mask_max_ps(best, first_lanes(n - j), best, _mm512_loadu_ps(values + j));
    return _mm512_reduce_max_ps(best);
}

enum { NO_TOKEN = -1 };

/* Whether there is a largest value, and it and all others are numbers or -infinity. */
static int can_draw(const float *values, i64 n) {
    const __m512 infinity = _mm512_set1_ps(INFINITY);
    __mmask16 bad = 0, real = 0;
    for (i64 j = 0; j < n; j += 16) {
        const __m512 v = _mm512_loadu_ps(values + j);
        const __mmask16 lanes = first_lanes(n - j);
        bad |= _mm512_cmp_ps_mask(v, infinity, _CMP_NLT_UQ) & lanes; /* NaN too */
        real |= _mm512_cmp_ps_mask(v, _mm512_set1_ps(-INFINITY), _CMP_GT_OQ) & lanes;
    }
    return !bad && real;
}

/* The first of the largest. */
static i64 argmax_of(const float *values, i64 n) {
    const __m512 best = _mm512_set1_ps(max_of_row(values, n));
    for (i64 j = 0; j < n; j += 16) {
        const __mmask16 equal = _mm512_cmp_ps_mask(_mm512_loadu_ps(values + j), best, _CMP_EQ_OQ) & first_lanes(n - j);
        if (equal) return j + __builtin_ctz(equal);
    }
    return 0; /* all are NaN */
}

/* The softmax's last element. */
static float last_probability(const float *values, i64 n) {
    const float best = max_of_row(values, n);
    __m512 total = _mm512_setzero_ps();
    for (i64 j = 0; j < n; j += 16) {
        const __m512 e = exp_of(_mm512_sub_ps(_mm512_loadu_ps(values + j), _mm512_set1_ps(best)), 0);
        total = _mm512_mask_add_ps(total, first_lanes(n - j), total, e);
    }
    return expf(values[n - 1] - best) / _mm512_reduce_add_ps(total);
}

static int ascending(const void *a, const void *b) {
    const float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

/* The least value that top-k, then top-p keep: reference.process_logits. */
static float least_kept(const float *values, i64 n, i64 top_k, float top_p, int suno_rules, float *sorted) {
    const int limited = top_k > 0 && top_k < n;
    if (!limited && top_p >= 1) return -INFINITY;
    memcpy(sorted, values, n * 4);
    qsort(sorted, n, 4, ascending);
    const float kth = limited ? sorted[n - top_k] : -INFINITY;
    if (top_p >= 1) return kth;
    i64 first = 0;
    while (!suno_rules && sorted[first] < kth) first++;
    double total = 0, tail = 0;
    for (i64 j = first; j < n; j++) total += expf(sorted[j] - sorted[n - 1]);
    /* Dropped are the least likely, equal ones together, as long as they have at most 1 - p. */
    for (i64 j = first, next; j < n; j = next) {
        for (next = j; next < n && sorted[next] == sorted[j]; next++) tail += expf(sorted[next] - sorted[n - 1]);
        const int enough = suno_rules ? tail / total >= 1 - top_p : tail / total > 1 - top_p;
        if (enough || next == n) return sorted[j] > kth ? sorted[j] : kth;
    }
    return kth;
}

/* hi and lo of a * m for 16 lanes. */
INLINE void multiply_words(__m512i a, uint32_t m, __m512i *hi, __m512i *lo) {
    const __m512i by = _mm512_set1_epi32(m);
    const __m512i even = _mm512_mul_epu32(a, by), odd = _mm512_mul_epu32(_mm512_srli_epi64(a, 32), by);
    *hi = _mm512_mask_mov_epi32(_mm512_srli_epi64(even, 32), 0xAAAA, odd);
    *lo = _mm512_mullo_epi32(a, by);
}

/* Philox-4x32-10 (Salmon et al. 2011) with counter (block, position, stage, 0) and the seed as its
 * key, a block for four words: reference.random_words. Writes whole runs of 64. */
static void random_words(uint32_t *words, i64 n, uint64_t seed, i64 position, i64 stage) {
    for (i64 at = 0; at < n; at += 64) {
        __m512i c0 = _mm512_add_epi32(_mm512_set1_epi32(at / 4), _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15));
        __m512i c1 = _mm512_set1_epi32(position), c2 = _mm512_set1_epi32(stage), c3 = _mm512_setzero_si512();
        uint32_t k0 = seed, k1 = seed >> 32;
        for (int round = 0; round < 10; round++, k0 += 0x9E3779B9u, k1 += 0xBB67AE85u) {
            __m512i hi0, lo0, hi1, lo1;
            multiply_words(c0, 0xD2511F53u, &hi0, &lo0);
            multiply_words(c2, 0xCD9E8D57u, &hi1, &lo1);
            c0 = _mm512_xor_si512(_mm512_xor_si512(hi1, c1), _mm512_set1_epi32(k0));
            c2 = _mm512_xor_si512(_mm512_xor_si512(hi0, c3), _mm512_set1_epi32(k1));
            c1 = lo1, c3 = lo0;
        }
        /* From four vectors of 16 blocks to words in order: a 4 x 4 transpose of lanes, then one of
         * 128-bit lanes. */
        const __m512i a = _mm512_unpacklo_epi32(c0, c1), b = _mm512_unpacklo_epi32(c2, c3);
        const __m512i c = _mm512_unpackhi_epi32(c0, c1), d = _mm512_unpackhi_epi32(c2, c3);
        const __m512i r0 = _mm512_unpacklo_epi64(a, b), r1 = _mm512_unpackhi_epi64(a, b);
        const __m512i r2 = _mm512_unpacklo_epi64(c, d), r3 = _mm512_unpackhi_epi64(c, d);
        const __m512i s0 = _mm512_shuffle_i32x4(r0, r1, 0x44), s1 = _mm512_shuffle_i32x4(r0, r1, 0xEE);
        const __m512i s2 = _mm512_shuffle_i32x4(r2, r3, 0x44), s3 = _mm512_shuffle_i32x4(r2, r3, 0xEE);
        _mm512_storeu_si512(words + at, _mm512_shuffle_i32x4(s0, s2, 0x88));
        _mm512_storeu_si512(words + at + 16, _mm512_shuffle_i32x4(s0, s2, 0xDD));
        _mm512_storeu_si512(words + at + 32, _mm512_shuffle_i32x4(s1, s3, 0x88));
        _mm512_storeu_si512(words + at + 48, _mm512_shuffle_i32x4(s1, s3, 0xDD));
    }
}

/* -log(-log u), u in (0, 1) from the upper 23 bits of a word: reference.gumbel_noise. */
INLINE __m512 gumbel_of(__m512i words) {
    __m512 u = _mm512_cvtepi32_ps(_mm512_srli_epi32(words, 9));
    u = _mm512_mul_ps(_mm512_add_ps(u, _mm512_set1_ps(0.5f)), _mm512_set1_ps(0x1p-23f));
    const __m512 zero = _mm512_setzero_ps();
    return _mm512_sub_ps(zero, log_of(_mm512_sub_ps(zero, log_of(u))));
}

/* Write what a row's next step reads: reference._advance. */
static void advance(const Sample *a, i64 r) {
    const i64 column = a->chosen[r], token = column == NO_TOKEN ? NO_TOKEN : column + a->first_id;
    int more = !(a->min_eos_p && column == a->columns - 1);
    if (more) {
        a->history[r * a->history_width + a->num_generated[r] % a->history_width] = token;
        more = ++a->num_generated[r] < a->limits[r] && column != NO_TOKEN;
    }
    if (!more) {
        a->finished[r] = 1;
        a->slot_mapping[r] = -1;
        a->seq_lens[r] = 0;
        return;
    }
    const i64 at = a->state_positions[r] + 1, page = a->tables[r * a->max_pages + at / a->page_size];
    a->token_ids[r] = token;
    a->state_positions[r] = at;
    a->seq_lens[r] = at + 1;
    a->slot_mapping[r] = page * a->page_size + at % a->page_size;
}

/* Weights as signed bytes, x as unsigned ones, sums as integers, which are exact. */
#define T(name) i8_##name
#define SIZE 1
#define PER_WORD 4
#ifdef __AVX512VNNI__
/* Not the intrinsic: with it gcc 12 keeps half of a tile's sums on the stack, which halves the rate. */
#define MULTIPLY(sum, x, w) \
    ({ __m512 sum_ = (sum); __asm__("vpdpbusd %2, %1, %0" : "+v"(sum_) : "v"(x), "v"(w)); sum_; })
int has_int8(void) { return 1; }
#else
#define MULTIPLY(sum, x, w) (sum) /* never asked for */
int has_int8(void) { return 0; }
#endif
#define ADD(a, b) _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(a), _mm512_castps_si512(b)))
#include "native_products.h"
#undef T
#undef SIZE
#undef PER_WORD
#undef MULTIPLY
#undef ADD

#define HALF 0
#define T(name) f32_##name
#include "native.h"

#ifdef __AVX512BF16__
#define HALF 1
#define T(name) bf16_##name
#include "native.h"
#define CALL(function, ...) (half ? bf16_##function(__VA_ARGS__) : f32_##function(__VA_ARGS__))
int has_bfloat16(void) { return 1; }
#else
#define CALL(function, ...) f32_##function(__VA_ARGS__)
int has_bfloat16(void) { return 0; }
#endif

/* What native.py calls ---------------------------------------------------------------------------*/

/* Bytes of a weight as panels, of bytes or else of its own type. */
i64 packed_bytes(i64 half, i64 in_bytes, i64 n, i64 k) {
    return ceil_div(n, PANEL) * (in_bytes ? i8_panel_bytes(k) : CALL(panel_bytes, k));
}

/* The codec's, which computes in float32 alone. */

enum { ELU_AT_ONCE = 1024 };

static i64 f32_elu_pieces(const Elu *a, const Work *work) { return in_pieces(work, ceil_div(a->n, ELU_AT_ONCE), 12 * ELU_AT_ONCE); }

static void f32_elu_piece(const Elu *a, const Work *work, i64 piece) {
    const i64 items = ceil_div(a->n, ELU_AT_ONCE), stop = min_of(a->n, first_item(work, items, piece + 1) * ELU_AT_ONCE);
    for (i64 i = first_item(work, items, piece) * ELU_AT_ONCE; i < stop; i += 16) {
        const __mmask16 lanes = first_lanes(stop - i);
        __m512 v = f32_load(a->x, i, lanes);
        if (a->residual) v = _mm512_add_ps(v, f32_load(a->residual, i, lanes));
        f32_store(a->y, i, lanes, elu_of(v));
    }
}

/* A layer of LSTM (Hochreiter and Schmidhuber 1997), gates as torch has them: input, forget, cell,
 * output. Two phases a step: what the state before adds to the gates, and the new state. Shared
 * memory holds the cells, and the gates of a step. */
static i64 f32_lstm_pieces(const Lstm *a, Work *work) {
    const i64 width = a->width, gates = ceil_div(4 * width, PANEL) * PANEL;
    if (work->phase == 0) {
        if (reserve(work, (width + gates) * sizeof(float), 0)) return -1;
        memset(work->shared, 0, (width + gates) * sizeof(float));
        return 0; /* there is no state before */
    }
    return work->phase % 2 ? 1 : in_pieces(work, gates / PANEL, f32_panel_bytes(width));
}

static void f32_lstm_piece(const Lstm *a, const Work *work, i64 piece) {
    const i64 width = a->width, step = work->phase / 2, panels = ceil_div(4 * width, PANEL);
    float *cells = (float *)work->shared, *gates = cells + width;
    if (work->phase % 2 == 0) {
        const char *before = a->y + (step - 1) * width * sizeof(float);
        for (i64 p = first_item(work, panels, piece); p < first_item(work, panels, piece + 1); p++)
            f32_tile(1, before, 0, a->panels + p * f32_panel_bytes(width), width, gates + p * PANEL, PANEL);
        return;
    }
    const char *x = a->x + step * 4 * width * sizeof(float);
    for (i64 i = 0; i < width; i += 16) {
        const __mmask16 lanes = first_lanes(width - i);
        __m512 gate[4];
        for (int g = 0; g < 4; g++)
            gate[g] = _mm512_add_ps(f32_load(x, g * width + i, lanes), f32_load(gates, g * width + i, lanes));
        __m512 cell = _mm512_mul_ps(sigmoid_of(gate[1]), f32_load(cells, i, lanes));
        cell = _mm512_fmadd_ps(sigmoid_of(gate[0]), tanh_of(gate[2]), cell);
        f32_store(cells, i, lanes, cell);
        f32_store(a->y, step * width + i, lanes, _mm512_mul_ps(sigmoid_of(gate[3]), tanh_of(cell)));
    }
}

static i64 pack_pieces(const Pack *a, Work *work) {
    if (a->scales && reserve(work, 0, a->k)) return -1;
    return in_pieces(work, ceil_div(a->n, PANEL), 64 * PANEL * a->k);
}

static void pack_piece(const Pack *a, const Work *work, i64 piece, i64 thread) {
    const i64 half = a->half, panels = ceil_div(a->n, PANEL), bytes = packed_bytes(half, !!a->scales, PANEL, a->k);
    char *units = work->own + thread * work->own_bytes;
    for (i64 p = first_item(work, panels, piece); p < first_item(work, panels, piece + 1); p++) {
        char *panel = a->panels + p * bytes;
        memset(panel, 0, bytes); /* what is left of the last panel, and of a row's last word */
        for (i64 i = p * PANEL; i < min_of(a->n, (p + 1) * PANEL); i++) {
            const char *row = a->weight + i * a->k * (half ? 2 : 4);
            if (a->scales) {
                CALL(quantise_weight, units, row, a->k, a->scales + i, a->excess + i);
                i8_pack_row(panel, i % PANEL, units, a->k);
            } else CALL(pack_row, panel, i % PANEL, row, a->k);
        }
    }
}

static i64 phases_of(const i64 *operation) {
    switch (operation[0]) {
        case LINEAR: return 3;
        case LSTM: return 2 * ((const Lstm *)operation)->steps;
        case PAGED_ATTENTION: case BIDIRECTIONAL_ATTENTION: return 2;
        default: return 1;
    }
}

static i64 pieces_of_phase(Work *work) {
    const i64 *operation = work->operation;
    const int half = operation[1];
    switch (operation[0]) {
        case EMBEDDING_SUM: return CALL(embedding_pieces, (const Embedding *)operation, work);
        case LINEAR: return CALL(linear_pieces, (const Linear *)operation, work);
        case DECODE_ATTENTION: return CALL(decode_attention_pieces, (const Attention *)operation, work);
        case SAMPLE: return CALL(sample_pieces, (const Sample *)operation, work);
        case PACK: return pack_pieces((const Pack *)operation, work);
        case ELU: return f32_elu_pieces((const Elu *)operation, work);
        case LSTM: return f32_lstm_pieces((const Lstm *)operation, work);
        default: return CALL(attention_pieces, (const Attention *)operation, work);
    }
}

static void do_piece(const Work *work, i64 piece, i64 thread) {
    const i64 *operation = work->operation;
    const int half = operation[1];
    switch (operation[0]) {
        case EMBEDDING_SUM: CALL(embedding_piece, (const Embedding *)operation, work, piece); break;
        case LINEAR: CALL(linear_piece, (const Linear *)operation, work, piece); break;
        case DECODE_ATTENTION: CALL(decode_attention_piece, (const Attention *)operation, work, piece, thread); break;
        case SAMPLE: CALL(sample_piece, (const Sample *)operation, work, piece, thread); break;
        case PACK: pack_piece((const Pack *)operation, work, piece, thread); break;
        case ELU: f32_elu_piece((const Elu *)operation, work, piece); break;
        case LSTM: f32_lstm_piece((const Lstm *)operation, work, piece); break;
        default: CALL(attention_piece, (const Attention *)operation, work, piece, thread);
    }
}

/* For tests of the generator. */
void words_of_rows(uint32_t *words, const i64 *seeds, const i64 *positions, i64 rows, i64 width, i64 stage) {
    for (i64 r = 0; r < rows; r++) random_words(words + r * width, width, seeds[r], positions[r], stage);
}
