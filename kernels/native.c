/* Bark's operations on CPUs with AVX-512: the products of a transformer block and its attention.
 *
 * `native.py` compiles this file and says what each function takes; `native.h` holds the operations,
 * written once for two types: float32, and bfloat16 with float32 sums (vdpbf16ps).
 *
 * Products. A weight [N, K] is packed in panels of 32 rows, in each k by k (bfloat16: two by two),
 * so that a step of k reads two vectors of 16 outputs and one broadcast of x a row. One row reads
 * the weights once, straight through, at the memory's bandwidth; more rows reuse a panel from the
 * cache, up to 12 at a time in registers.
 *
 * Each output adds its terms in the order of k, in blocks of BLOCK_K whose sums are then added, so
 * its bits do not depend on how many rows there are, on their order, or on the number of threads.
 *
 * Attention of many queries packs the keys and values of each head in the same panels and uses the
 * same product: scores of 12 queries, softmax, product with the values (Vaswani et al. 2017, eq. 1).
 * Attention of one query reads keys and values where they lie.
 *
 * Functions return 0, or -1 where there is no memory left.
 */
#include <immintrin.h>
#include <math.h>
#include <omp.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum {
    PANEL = 32,
    MAX_ROWS = 12, /* two sums each, of 32 registers; three of the others hold the weights and x */
    BLOCK_K = 256,
    AHEAD = 2048, /* bytes: the processor itself does not fetch beyond the end of a page */
};

#define INLINE static inline __attribute__((always_inline))

typedef int64_t i64;

INLINE i64 ceil_div(i64 a, i64 b) { return (a + b - 1) / b; }
INLINE i64 min_of(i64 a, i64 b) { return a < b ? a : b; }
INLINE i64 max_of(i64 a, i64 b) { return a > b ? a : b; }

/* Memory that a calling thread keeps for the next call, 64 bytes aligned. */
static char *scratch(size_t bytes) {
    static _Thread_local char *memory;
    static _Thread_local size_t held;
    if (bytes > held) {
        free(memory);
        held = ceil_div(bytes + bytes / 2, 64) * 64;
        memory = aligned_alloc(64, held);
        if (!memory) held = 0;
    }
    return memory;
}

/* A layer norm; weight is NULL where there is none. */
typedef struct {
    const char *weight, *bias;
    float eps;
} Norm;

/* Where a projection's keys and values go, [P, heads, page_size, d]; NULL for other products. */
typedef struct {
    char *keys, *values;
    const i64 *slots; /* page * page_size + offset of each row; -1 nowhere */
    i64 heads, page_size, d;
} Pages;

/* Queries of sequences one after another, a row of heads * d every token_stride numbers. */
typedef struct {
    const char *q;
    i64 token_stride;
    const i64 *starts, *lengths; /* [B + 1] rows, [B] keys */
} Queries;

/* Keys and values of sequences; tables is NULL where sequence b has one page, b. */
typedef struct {
    const char *keys, *values;
    const i64 *tables; /* [B, max_pages] */
    i64 max_pages, page_size, page_stride, head_stride, token_stride; /* strides in numbers */
} Source;

/* The first number of key or value j of head h of sequence b. */
INLINE i64 place(const Source *s, i64 b, i64 h, i64 j) {
    const i64 page = s->tables ? s->tables[b * s->max_pages + j / s->page_size] : b;
    return page * s->page_stride + h * s->head_stride + j % s->page_size * s->token_stride;
}

INLINE __mmask16 first_lanes(i64 n) { return n >= 16 ? 0xFFFF : n <= 0 ? 0 : (1u << n) - 1; }

/* exp(x) for x <= 0: 2^n times a polynomial in the rest, which is Taylor's to the 7th power. */
INLINE __m512 exp_of(__m512 x) {
    x = _mm512_max_ps(x, _mm512_set1_ps(-104.0f)); /* below, float32 has only zero */
    __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)), 8);
    __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x); /* ln 2 in two parts */
    r = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4f), r);
    __m512 p = _mm512_set1_ps(1.0f / 5040);
    const float terms[] = {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f};
    for (int i = 0; i < 7; i++) p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(terms[i]));
    return _mm512_scalef_ps(p, n);
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

/* What native.py calls; `half` asks for bfloat16 -------------------------------------------------*/

i64 packed_bytes(int half, i64 n, i64 k) { return ceil_div(n, PANEL) * CALL(panel_bytes, k); }

void pack(int half, char *panels, const char *weight, i64 n, i64 k) {
    memset(panels, 0, packed_bytes(half, n, k));
#pragma omp parallel for
    for (i64 p = 0; p < ceil_div(n, PANEL); p++)
        for (i64 i = p * PANEL; i < min_of(n, (p + 1) * PANEL); i++)
            CALL(pack_row, panels + p * CALL(panel_bytes, k), i % PANEL, weight + i * k * (half ? 2 : 4), k);
}

int linear(int half, char *y, const char *x, const char *panels, const char *bias, const char *norm_weight,
           const char *norm_bias, float eps, const char *residual, i64 rows, i64 n, i64 k, char *k_pages,
           char *v_pages, const i64 *slots, i64 heads, i64 page_size, i64 d) {
    const Norm norm = {norm_weight, norm_bias, eps};
    const Pages pages = {k_pages, v_pages, slots, heads, page_size, d};
    return CALL(linear, y, x, panels, bias, &norm, residual, rows, n, k, &pages);
}

int paged_attention(int half, char *out, const char *q, i64 q_stride, const char *k_pages, const char *v_pages,
                    const i64 *tables, const i64 *starts, const i64 *lengths, i64 batch, i64 max_pages,
                    i64 page_size, i64 heads, i64 d) {
    const Queries queries = {q, q_stride, starts, lengths};
    const Source source = {k_pages, v_pages, tables, max_pages, page_size, heads * page_size * d, page_size * d, d};
    return CALL(attention, out, &queries, &source, batch, heads, d, 1);
}

int decode_attention(int half, char *out, const char *q, const char *k_pages, const char *v_pages,
                     const i64 *tables, const i64 *lengths, i64 batch, i64 max_pages, i64 page_size,
                     i64 heads, i64 d) {
    const Source source = {k_pages, v_pages, tables, max_pages, page_size, heads * page_size * d, page_size * d, d};
    return CALL(decode_attention, out, q, &source, lengths, batch, heads, d);
}

/* q, k and v have the same strides; sequence b is rows b * tokens on, starts and lengths say so. */
int bidirectional_attention(int half, char *out, const char *q, const char *k, const char *v, i64 stride,
                            const i64 *starts, const i64 *lengths, i64 batch, i64 tokens, i64 heads, i64 d) {
    const Queries queries = {q, stride, starts, lengths};
    const Source source = {k, v, NULL, 0, tokens, tokens * stride, d, stride};
    return CALL(attention, out, &queries, &source, batch, heads, d, 0);
}
