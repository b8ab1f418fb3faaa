/* The operations of native.c for one type: HALF is 1 for bfloat16 and 0 for float32, and T(name)
 * names this type's version of a function. Included once for each. */

#define SIZE (HALF ? 2 : 4)
#define PER_WORD (HALF ? 2 : 1)
#if HALF
#define MULTIPLY(sum, x, w) _mm512_dpbf16_ps(sum, (__m512bh)(x), (__m512bh)(w))
#else
#define MULTIPLY(sum, x, w) _mm512_fmadd_ps(x, w, sum)
#endif
#define ADD(a, b) _mm512_add_ps(a, b)

#include "native_products.h"

INLINE __m512 T(load)(const void *p, i64 i, __mmask16 lanes) {
#if HALF
    __m256i raw = _mm256_maskz_loadu_epi16(lanes, (const uint16_t *)p + i);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(raw), 16));
#else
    return _mm512_maskz_loadu_ps(lanes, (const float *)p + i);
#endif
}

INLINE void T(store)(void *p, i64 i, __mmask16 lanes, __m512 value) {
#if HALF
    _mm256_mask_storeu_epi16((uint16_t *)p + i, lanes, (__m256i)_mm512_cvtneps_pbh(value));
#else
    _mm512_mask_storeu_ps((float *)p + i, lanes, value);
#endif
}

/* What would be loaded after storing: in the reference every operation rounds. */
INLINE __m512 T(rounded)(__m512 value) {
#if HALF
    const __m512i raw = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(value));
    return _mm512_castsi512_ps(_mm512_slli_epi32(raw, 16));
#else
    return value;
#endif
}

/* Layer norm of one row (Ba et al. 2016), statistics in float32. */
INLINE void T(norm_row)(char *y, const char *x, const Linear *a) {
    const i64 k = a->k;
    __m512 sum = _mm512_setzero_ps(), squares = sum;
    for (i64 i = 0; i < k; i += 16) sum = _mm512_add_ps(sum, T(load)(x, i, first_lanes(k - i)));
    const __m512 mean = _mm512_set1_ps(_mm512_reduce_add_ps(sum) / k);
    for (i64 i = 0; i < k; i += 16) {
        const __mmask16 lanes = first_lanes(k - i);
        const __m512 d = _mm512_maskz_sub_ps(lanes, T(load)(x, i, lanes), mean);
        squares = _mm512_fmadd_ps(d, d, squares);
    }
    const __m512 scale = _mm512_set1_ps(1.0f / sqrtf(_mm512_reduce_add_ps(squares) / k + (float)a->eps));
    for (i64 i = 0; i < k; i += 16) {
        const __mmask16 lanes = first_lanes(k - i);
        __m512 v = _mm512_mul_ps(_mm512_sub_ps(T(load)(x, i, lanes), mean), scale);
        v = _mm512_mul_ps(v, T(load)(a->norm_weight, i, lanes));
        if (a->norm_bias) v = _mm512_add_ps(v, T(load)(a->norm_bias, i, lanes));
        T(store)(y, i, lanes, v);
    }
}

#ifdef __AVX512VNNI__ /* bytes */

/* The largest magnitude of k numbers; NaN if one is infinite or NaN, because bytes have neither. */
INLINE float T(largest)(const char *x, i64 k) {
    __m512 largest = _mm512_setzero_ps();
    __mmask16 nan = 0;
    for (i64 i = 0; i < k; i += 16) {
        const __m512 v = T(load)(x, i, first_lanes(k - i));
        nan |= _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
        largest = _mm512_max_ps(largest, _mm512_abs_ps(v));
    }
    const float most = _mm512_reduce_max_ps(largest);
    return nan || isinf(most) ? NAN : most;
}

/* One row of k numbers as bytes, 128 more than the nearest multiple of the returned scale, up to 127;
 * bytes past the end stand for 0. */
INLINE float T(quantise_row)(uint8_t *bytes, const char *x, i64 k) {
    const float most = T(largest)(x, k);
    const __m512 inverse = _mm512_set1_ps(most > 0 ? 127.0f / most : 0);
    for (i64 i = 0; i < k; i += 16) {
        const __m512 v = _mm512_mul_ps(T(load)(x, i, first_lanes(k - i)), inverse);
        const __m512i n = _mm512_add_epi32(_mm512_cvtps_epi32(v), _mm512_set1_epi32(128));
        _mm_mask_storeu_epi8(bytes + i, first_lanes(ceil_div(k, 4) * 4 - i), _mm512_cvtepi32_epi8(n));
    }
    return most / 127.0f;
}

/* One row of a weight as signed bytes, in units of its largest number over 127, and what the 128 in each
 * byte of x adds to the output. */
INLINE void T(quantise_weight)(char *units, const char *row, i64 k, float *scale, int32_t *excess) {
    const float most = T(largest)(row, k);
    *scale = (most < FLT_MIN ? FLT_MIN : most) / 127.0f;
    __m512i sum = _mm512_setzero_si512();
    for (i64 i = 0; i < k; i += 16) {
        const __mmask16 lanes = first_lanes(k - i);
        const __m512i n = _mm512_cvtps_epi32(_mm512_div_ps(T(load)(row, i, lanes), _mm512_set1_ps(*scale)));
        _mm_mask_storeu_epi8(units + i, lanes, _mm512_cvtepi32_epi8(n));
        sum = _mm512_add_epi32(sum, n);
    }
    *excess = (int32_t)(128u * (uint32_t)_mm512_reduce_add_epi32(sum));
}

#else /* never asked for */
INLINE float T(quantise_row)(uint8_t *bytes, const char *x, i64 k) { return 0; }
INLINE void T(quantise_weight)(char *units, const char *row, i64 k, float *scale, int32_t *excess) {}
#endif

/* Bias, then GELU, then residual, on a panel's sums of some rows; those of bytes, whose rows have
 * `row_scales`, first become numbers. */
INLINE void T(finish_rows)(const Linear *a, float sums[][PANEL], const float *row_scales, i64 from, i64 rows, i64 panel) {
    for (i64 j = 0; j < PANEL; j += 16) {
        const i64 column = panel * PANEL + j;
        const __mmask16 lanes = first_lanes(a->n - column);
        const __m512 bias = a->bias ? T(load)(a->bias, column, lanes) : _mm512_setzero_ps();
        __m512 scales = _mm512_setzero_ps();
        __m512i excess = _mm512_setzero_si512();
        if (a->scales) {
            scales = _mm512_maskz_loadu_ps(lanes, a->scales + column);
            excess = _mm512_maskz_loadu_epi32(lanes, a->excess + column);
        }
        for (i64 r = 0; r < rows; r++) {
            const i64 at = (from + r) * a->n + column;
            __m512 v = _mm512_loadu_ps(sums[r] + j);
            if (a->scales) {
                const __m512 whole = _mm512_cvtepi32_ps(_mm512_sub_epi32(_mm512_castps_si512(v), excess));
                v = _mm512_mul_ps(whole, _mm512_mul_ps(scales, _mm512_set1_ps(row_scales[from + r])));
            }
            if (a->bias) v = _mm512_add_ps(v, bias);
            if (a->gelu) v = gelu_of(T(rounded)(v), HALF);
            if (a->residual) v = _mm512_add_ps(T(rounded)(v), T(load)(a->residual, at, lanes));
            if (a->elu) v = elu_of(v);
            T(store)(a->y, at, lanes, v);
        }
    }
}

/* Copy the keys and values of one row, which follow its queries, to their pages. */
INLINE void T(write_row)(const Linear *a, i64 row) {
    const i64 slot = a->slot_mapping[row], bytes = a->d * SIZE;
    const char *keys = a->y + (row * a->n + a->n / 3) * SIZE;
    if (slot < 0) return;
    const i64 page = slot / a->page_size, offset = slot % a->page_size;
    for (i64 h = 0; h < a->heads; h++) {
        const i64 to = ((page * a->heads + h) * a->page_size + offset) * bytes;
        memcpy(a->k_pages + to, keys + h * bytes, bytes);
        memcpy(a->v_pages + to, keys + (a->heads + h) * bytes, bytes);
    }
}

/* The inputs of a product, the memory for those that are first normed or made bytes, and how many
 * tiles there are: a panel times at most ROWS_A_TILE rows. */
typedef struct {
    i64 rows, row_bytes, x_bytes, in_bytes, panel_bytes; /* between rows of a->x; of what is normed */
    i64 panels, tiles;
    char *normed, *quantised;
    float *row_scales;
} T(Inputs);

INLINE T(Inputs) T(inputs)(const Linear *a, const Work *work) {
    T(Inputs) i = {.rows = a->rows, .row_bytes = a->x_stride * SIZE, .x_bytes = a->k * SIZE};
    i.in_bytes = a->scales ? ceil_div(a->k, 4) * 4 : i.x_bytes;
    i.panel_bytes = a->scales ? i8_panel_bytes(a->k) : T(panel_bytes)(a->k);
    i.panels = ceil_div(a->n, PANEL);
    i.tiles = i.panels * ceil_div(i.rows, ROWS_A_TILE);
    i.normed = work->shared;
    i.row_scales = (float *)(i.normed + i.rows * i.x_bytes);
    i.quantised = (char *)(i.row_scales + i.rows);
    return i;
}

static i64 T(linear_pieces)(const Linear *a, Work *work) {
    const T(Inputs) i = T(inputs)(a, work);
    if (work->phase == 0) {
        if (!a->norm_weight && !a->scales) return 0;
        if (reserve(work, i.rows * (i.x_bytes + i.in_bytes + sizeof(float)), 0)) return -1;
        return in_pieces(work, i.rows, 4 * i.x_bytes);
    }
    if (work->phase == 1) return in_pieces(work, i.tiles, i.panel_bytes * (16 + min_of(i.rows, ROWS_A_TILE)) / 16);
    return a->k_pages ? in_pieces(work, i.rows, a->n * SIZE) : 0;
}

INLINE void T(multiply_tile)(const Linear *a, const T(Inputs) *i, i64 tile) {
    const i64 p = tile % i->panels, runs = i->tiles / i->panels, run = tile / i->panels;
    const char *panel = a->panels + p * i->panel_bytes;
    const char *in = a->scales ? i->quantised : a->norm_weight ? i->normed : a->x;
    const i64 stride = a->scales ? i->in_bytes : a->norm_weight ? i->x_bytes : i->row_bytes;
    const i64 from = run * i->rows / runs, rows = (run + 1) * i->rows / runs - from;
    const i64 blocks = ceil_div(rows, MAX_ROWS);
    for (i64 block = 0; block < blocks; block++) {
        float sums[MAX_ROWS][PANEL];
        /* Blocks of nearly equal size: 8 + 8 rows take less time than 12 + 4. */
        const i64 start = from + block * rows / blocks, stop = from + (block + 1) * rows / blocks;
        const char *first = in + start * stride;
        if (a->scales) i8_tile(stop - start, first, stride, panel, a->k, sums[0], PANEL);
        else T(tile)(stop - start, first, stride, panel, a->k, sums[0], PANEL);
        T(finish_rows)(a, sums, i->row_scales, start, stop - start, p);
    }
}

static void T(linear_piece)(const Linear *a, const Work *work, i64 piece) {
    const T(Inputs) i = T(inputs)(a, work);
    const i64 items = work->phase == 1 ? i.tiles : i.rows;
    for (i64 j = first_item(work, items, piece); j < first_item(work, items, piece + 1); j++) {
        const char *x = a->x + j * i.row_bytes;
        char *normed = i.normed + j * i.x_bytes;
        if (work->phase == 1) T(multiply_tile)(a, &i, j);
        else if (work->phase == 2) T(write_row)(a, j);
        else {
            if (a->norm_weight) T(norm_row)(normed, x, a);
            if (a->scales) i.row_scales[j] = T(quantise_row)((uint8_t *)i.quantised + j * i.in_bytes, a->norm_weight ? normed : x, a->k);
        }
    }
}

/* Embeddings: of each row the sum over streams, negative ids left out, and a position's. */
static i64 T(embedding_pieces)(const Embedding *a, const Work *work) {
    return in_pieces(work, a->rows, (a->streams + 2) * a->width * SIZE);
}

static void T(embedding_piece)(const Embedding *a, const Work *work, i64 piece) {
    for (i64 r = first_item(work, a->rows, piece); r < first_item(work, a->rows, piece + 1); r++)
        for (i64 i = 0; i < a->width; i += 16) {
            const __mmask16 lanes = first_lanes(a->width - i);
            __m512 sum = _mm512_setzero_ps();
            for (i64 k = 0; k < a->streams; k++) {
                const i64 id = a->ids[k * a->ids_stride + r];
                if (id < 0) continue;
                sum = T(rounded)(_mm512_add_ps(sum, T(load)(a->tables, k * a->table_stride + id * a->width + i, lanes)));
            }
            sum = _mm512_add_ps(sum, T(load)(a->position_table, a->positions[r] * a->width + i, lanes));
            T(store)(a->y, r * a->width + i, lanes, sum);
        }
}

/* Attention -------------------------------------------------------------------------------------*/

/* exp(scale * (s - max s)) of the first `seen` scores, and 0 up to `width`; returns 1 / their sum. */
INLINE float T(softmax_row)(char *weights, const float *scores, i64 seen, i64 width, float scale) {
    __m512 best = _mm512_set1_ps(-INFINITY), total = _mm512_setzero_ps();
    __mmask16 nan = 0;
    for (i64 j = 0; j < seen; j += 16) {
        const __m512 s = _mm512_loadu_ps(scores + j);
        nan |= _mm512_cmp_ps_mask(s, s, _CMP_UNORD_Q) & first_lanes(seen - j);
        best = _mm512_mask_max_ps(best, first_lanes(seen - j), best, s);
    }
    const __m512 factor = _mm512_set1_ps(scale), top = _mm512_set1_ps(_mm512_reduce_max_ps(best));
    for (i64 j = 0; j < width; j += 16) {
        const __m512 e = exp_of(_mm512_mul_ps(_mm512_sub_ps(_mm512_loadu_ps(scores + j), top), factor), HALF);
        const __m512 w = _mm512_maskz_mov_ps(first_lanes(seen - j), e);
        total = _mm512_add_ps(total, w);
        T(store)(weights, j, 0xFFFF, w);
    }
    /* exp_of would take NaN for a small number: what is no number stays none. */
    if (nan || !isfinite(_mm512_reduce_max_ps(best))) return NAN;
    return 1.0f / _mm512_reduce_add_ps(total);
}

/* Keys of one head as the panels of a product: a key is a row of its weight, and what follows the
 * last key is zero. */
INLINE void T(pack_keys)(char *panels, const Source *source, i64 b, i64 h, i64 length, i64 d, i64 width) {
    const i64 bytes = T(panel_bytes)(d);
    const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const __m512i apart = _mm512_mullo_epi32(lanes, _mm512_set1_epi32(source->token_stride * SIZE));
    memset(panels + length / PANEL * bytes, 0, (width - length / PANEL * PANEL) / PANEL * bytes);
    for (i64 j = 0; j < length;) {
        const char *key = source->keys + place(source, b, h, j) * SIZE;
        char *panel = panels + j / PANEL * bytes;
        if (j % 16 || j + 16 > length || j % source->page_size + 16 > source->page_size) {
            T(pack_row)(panel, j % PANEL, key, d);
            j++;
            continue;
        }
        /* 16 keys that lie the same distance apart: a word of each at once. */
        for (i64 e = 0; e < d / PER_WORD; e++)
            _mm512_storeu_si512(panel + (e * PANEL + j % PANEL) * 4, _mm512_i32gather_epi32(apart, key + e * 4, 1));
        j += 16;
    }
}

/* Values of one head as the panels of a product: a value's number is a row of its weight. */
INLINE void T(pack_values)(char *panels, const Source *source, i64 b, i64 h, i64 length, i64 d, i64 width) {
    const i64 bytes = T(panel_bytes)(width);
    memset(panels, 0, ceil_div(d, PANEL) * bytes);
    for (i64 j = 0; j < length; j += PER_WORD) {
        const char *value = source->values + place(source, b, h, j) * SIZE;
        const char *next = j + 1 < length ? source->values + place(source, b, h, j + 1) * SIZE : NULL;
        for (i64 e = 0; e < d; e += 16) {
            const __mmask16 lanes = first_lanes(d - e);
            char *to = panels + e / PANEL * bytes + (j / PER_WORD * PANEL + e % PANEL) * 4;
#if HALF
            /* A load puts a number in the upper half of its lane: where the next one's belongs. */
            const __m512i low = _mm512_srli_epi32(_mm512_castps_si512(T(load)(value, e, lanes)), 16);
            const __m512i high = next ? _mm512_castps_si512(T(load)(next, e, lanes)) : _mm512_setzero_si512();
            _mm512_mask_storeu_epi32(to, lanes, _mm512_or_si512(low, high));
#else
            (void)next;
            _mm512_mask_storeu_ps(to, lanes, T(load)(value, e, lanes));
#endif
        }
    }
}

/* Up to MAX_ROWS queries of one head, of which the first sees `seen` keys and, if causal, each of
 * the others one more than the one before it. */
INLINE void T(attend)(char *out, i64 out_stride, const char *q, i64 q_stride, i64 rows, const char *keys,
                      const char *values, i64 seen, int causal, i64 d, i64 width, float *scores, char *weights) {
    const i64 covered = ceil_div(seen + (causal ? rows - 1 : 0), PANEL) * PANEL;
    const float scale = 1.0f / sqrtf((float)d);
    float sums[MAX_ROWS][PANEL], inverse[MAX_ROWS];
    for (i64 p = 0; p < covered; p += PANEL)
        T(tile)(rows, q, q_stride * SIZE, keys + p / PANEL * T(panel_bytes)(d), d, scores + p, width);
    for (i64 r = 0; r < rows; r++)
        inverse[r] = T(softmax_row)(weights + r * width * SIZE, scores + r * width, causal ? seen + r : seen, covered, scale);
    for (i64 p = 0; p < d; p += PANEL) {
        T(tile)(rows, weights, width * SIZE, values + p / PANEL * T(panel_bytes)(width), covered, sums[0], PANEL);
        for (i64 r = 0; r < rows; r++)
            for (i64 j = 0; j < PANEL; j += 16) {
                const __m512 v = _mm512_mul_ps(_mm512_loadu_ps(sums[r] + j), _mm512_set1_ps(inverse[r]));
                T(store)(out, r * out_stride + p + j, first_lanes(d - p - j), v);
            }
    }
}

/* The sizes of an attention of many queries: keys in whole panels, blocks of queries, bytes. */
typedef struct {
    i64 width, blocks, keys_bytes, head_bytes, scores_bytes;
} T(Sizes);

INLINE T(Sizes) T(sizes)(const Attention *a) {
    i64 longest = 0, most = 0;
    for (i64 b = 0; b < a->batch; b++) {
        longest = max_of(longest, a->lengths[b]);
        most = max_of(most, a->starts[b + 1] - a->starts[b]);
    }
    T(Sizes) s = {.width = ceil_div(longest, PANEL) * PANEL, .blocks = ceil_div(most, MAX_ROWS)};
    s.keys_bytes = s.width / PANEL * T(panel_bytes)(a->d);
    s.head_bytes = s.keys_bytes + ceil_div(a->d, PANEL) * T(panel_bytes)(s.width);
    s.scores_bytes = MAX_ROWS * s.width * 4;
    return s;
}

static i64 T(attention_pieces)(const Attention *a, Work *work) {
    const T(Sizes) s = T(sizes)(a);
    const i64 heads = a->batch * a->heads;
    if (work->phase) return in_pieces(work, heads * s.blocks, 2 * s.head_bytes);
    if (reserve(work, heads * s.head_bytes, s.scores_bytes + MAX_ROWS * s.width * SIZE)) return -1;
    return in_pieces(work, heads, 2 * s.head_bytes);
}

/* A block of queries of a head. */
INLINE void T(attend_block)(const Attention *a, const T(Sizes) *s, i64 head, i64 block, const char *keys, char *own) {
    const i64 b = head / a->heads, h = head % a->heads, d = a->d;
    const int causal = a->kind == PAGED_ATTENTION;
    const i64 first = a->starts[b], count = a->starts[b + 1] - first;
    const i64 from = block * MAX_ROWS, rows = min_of(MAX_ROWS, count - from);
    if (rows <= 0) return;
    char *out = a->out + ((first + from) * a->heads + h) * d * SIZE;
    if (!a->lengths[b]) { /* nothing to see */
        for (i64 r = 0; r < rows; r++) memset(out + r * a->heads * d * SIZE, 0, d * SIZE);
        return;
    }
    const char *q = a->q + ((first + from) * a->q_stride + h * d) * SIZE;
    const i64 seen = a->lengths[b] - (causal ? count - from - 1 : 0);
    T(attend)(out, a->heads * d, q, a->q_stride, rows, keys, keys + s->keys_bytes, seen, causal, d, s->width,
              (float *)own, own + s->scores_bytes);
}

static void T(attention_piece)(const Attention *a, const Work *work, i64 piece, i64 thread) {
    const T(Sizes) s = T(sizes)(a);
    const Source source = source_of(a);
    const i64 items = a->batch * a->heads * (work->phase ? s.blocks : 1);
    for (i64 i = first_item(work, items, piece); i < first_item(work, items, piece + 1); i++) {
        const i64 head = work->phase ? i / s.blocks : i, b = head / a->heads, h = head % a->heads;
        char *keys = work->shared + head * s.head_bytes;
        if (work->phase) {
            T(attend_block)(a, &s, head, i % s.blocks, keys, work->own + thread * work->own_bytes);
            continue;
        }
        T(pack_keys)(keys, &source, b, h, a->lengths[b], a->d, s.width);
        T(pack_values)(keys + s.keys_bytes, &source, b, h, a->lengths[b], a->d, s.width);
    }
}

/* The scores of up to 16 keys that lie one after another. */
INLINE __m512 T(score_keys)(const char *q, const char *keys, i64 count, const i64 d) {
    __m512 sums[16];
    for (int j = 0; j < 16; j++) {
        sums[j] = _mm512_setzero_ps();
        if (j >= count) continue;
        for (i64 e = 0; e < d / PER_WORD; e += 16) {
            const __mmask16 lanes = first_lanes(d / PER_WORD - e);
            sums[j] = MULTIPLY(sums[j], _mm512_maskz_loadu_ps(lanes, q + e * 4), _mm512_maskz_loadu_ps(lanes, keys + j * d * SIZE + e * 4));
        }
    }
    return sum_each(sums);
}

/* One query of one head, d numbers: keys and values are read where they lie, page after page. */
INLINE void T(attend_one)(char *out, const char *q, const Source *source, i64 b, i64 h, i64 length, const i64 d, float *scores) {
    for (i64 from = 0, to; from < length; from = to) {
        to = min_of(length, (from / source->page_size + 1) * source->page_size);
        const char *keys = source->keys + place(source, b, h, from) * SIZE;
        i64 j = from;
        for (; j + 16 <= to; j += 16, keys += 16 * d * SIZE) _mm512_storeu_ps(scores + j, T(score_keys)(q, keys, 16, d));
        if (j < to) _mm512_mask_storeu_ps(scores + j, first_lanes(to - j), T(score_keys)(q, keys, to - j, d));
    }
    /* Numbers past the length are left from other uses, and weighed 0 below. */
    const float inverse = length ? f32_softmax_row((char *)scores, scores, length, ceil_div(length, 16) * 16, 1.0f / sqrtf((float)d)) : 0;
    for (i64 e = 0; e < d; e += 64) {
        __m512 even[4], odd[4]; /* two sums, so that one need not wait for the other */
        for (int c = 0; c < 4; c++) even[c] = odd[c] = _mm512_setzero_ps();
        for (i64 from = 0, to; from < length; from = to) {
            to = min_of(length, (from / source->page_size + 1) * source->page_size);
            const char *values = source->values + (place(source, b, h, from) + e) * SIZE;
            for (i64 j = from; j < to; j++, values += d * SIZE) {
                const __m512 w = _mm512_set1_ps(scores[j]);
                for (int c = 0; c < 4; c++) {
                    const __m512 v = T(load)(values, 16 * c, first_lanes(d - e - 16 * c));
                    if (j % 2) odd[c] = _mm512_fmadd_ps(w, v, odd[c]);
                    else even[c] = _mm512_fmadd_ps(w, v, even[c]);
                }
            }
        }
        for (int c = 0; c < 4; c++)
            T(store)(out, e + 16 * c, first_lanes(d - e - 16 * c), _mm512_mul_ps(_mm512_add_ps(even[c], odd[c]), _mm512_set1_ps(inverse)));
    }
}

static i64 T(decode_attention_pieces)(const Attention *a, Work *work) {
    i64 longest = 0, keys = 0;
    for (i64 b = 0; b < a->batch; b++) {
        longest = max_of(longest, a->lengths[b]);
        keys += a->lengths[b];
    }
    if (reserve(work, 0, ceil_div(longest + 1, 16) * 16 * sizeof(float))) return -1;
    return in_pieces(work, a->batch * a->heads, keys * 2 * a->d * SIZE / max_of(1, a->batch));
}

static void T(decode_attention_piece)(const Attention *a, const Work *work, i64 piece, i64 thread) {
    const Source source = source_of(a);
    const i64 items = a->batch * a->heads, d = a->d;
    float *scores = (float *)(work->own + thread * work->own_bytes);
    for (i64 i = first_item(work, items, piece); i < first_item(work, items, piece + 1); i++) {
        const i64 b = i / a->heads, h = i % a->heads;
        char *out = a->out + i * d * SIZE;
        const char *q = a->q + (b * a->q_stride + h * d) * SIZE;
        if (d == 64) T(attend_one)(out, q, &source, b, h, a->lengths[b], 64, scores); /* Bark's; unrolled */
        else T(attend_one)(out, q, &source, b, h, a->lengths[b], d, scores);
    }
}

/* Sampling --------------------------------------------------------------------------------------*/

/* Divide the values from `least` on; the others become -inf. */
INLINE void T(divide)(float *values, i64 n, float by, float least) {
    for (i64 j = 0; j < n; j += 16) {
        const __m512 v = _mm512_loadu_ps(values + j);
        const __mmask16 kept = _mm512_cmp_ps_mask(v, _mm512_set1_ps(least), _CMP_NLT_UQ); /* NaN stays */
        _mm512_storeu_ps(values + j, _mm512_mask_div_ps(_mm512_set1_ps(-INFINITY), kept, v, _mm512_set1_ps(by)));
    }
}

/* One row's column; `values` and `noise` hold 64 numbers more than there are columns. */
INLINE i64 T(sample_row)(const Sample *a, i64 row, float *values, float *noise) {
    const i64 columns = a->columns, position = a->positions[row], turn = position % a->n_ranges;
    const i64 from = turn * a->range_size, suno_rules = a->suno_rules[row];
    const int open_ended = turn == a->n_ranges - 1 && (!suno_rules || a->n_ranges == 1);
    i64 to = open_ended ? columns : from + a->range_size;
    if (a->min_new_tokens && position < a->min_new_tokens[row]) to = min_of(to, columns - 1);
    for (i64 j = 0; j < columns; j += 16) {
        const __m512 v = T(load)(a->logits, row * columns + j, first_lanes(columns - j));
        const __mmask16 lanes = first_lanes(to - j) & ~first_lanes(from - j);
        _mm512_storeu_ps(values + j, _mm512_mask_mov_ps(_mm512_set1_ps(-INFINITY), lanes, v));
    }
    if (!can_draw(values + from, to - from)) return NO_TOKEN;
    const float min_eos_p = a->min_eos_p ? a->min_eos_p[row] : 0;
    if (!suno_rules && min_eos_p > 0 && last_probability(values, columns) > min_eos_p) return columns - 1;
    if (suno_rules && a->min_eos_p && min_eos_p <= 0) return columns - 1;
    if (a->temperature[row] != 0) {
        float least = -INFINITY;
        /* By suno's rules the temperature divides what the filters have left, and then the end is judged. */
        if (!suno_rules) T(divide)(values, columns, a->temperature[row], least);
        least = least_kept(values, columns, a->top_k[row], a->top_p[row], suno_rules, noise);
        if (suno_rules) {
            T(divide)(values, columns, a->temperature[row], least);
            least = -INFINITY;
            if (a->min_eos_p && last_probability(values, columns) >= min_eos_p) return columns - 1;
        }
        random_words((uint32_t *)noise, columns, a->seeds[row], position, a->stage);
        for (i64 j = 0; j < columns; j += 16) {
            __m512 v = _mm512_loadu_ps(values + j);
            const __mmask16 kept = _mm512_cmp_ps_mask(v, _mm512_set1_ps(least), _CMP_GE_OQ);
            v = _mm512_add_ps(v, gumbel_of(_mm512_loadu_si512(noise + j)));
            _mm512_storeu_ps(values + j, _mm512_mask_mov_ps(_mm512_set1_ps(-INFINITY), kept, v));
        }
    }
    return argmax_of(values, columns);
}

static i64 T(sample_pieces)(const Sample *a, Work *work) {
    if (reserve(work, 0, 2 * (ceil_div(a->columns, 64) * 64 + 64) * sizeof(float))) return -1;
    return in_pieces(work, a->rows, 32 * a->columns);
}

static void T(sample_piece)(const Sample *a, const Work *work, i64 piece, i64 thread) {
    float *values = (float *)(work->own + thread * work->own_bytes);
    for (i64 r = first_item(work, a->rows, piece); r < first_item(work, a->rows, piece + 1); r++) {
        if (a->finished && a->finished[r]) {
            a->chosen[r] = 0;
            continue;
        }
        a->chosen[r] = T(sample_row)(a, r, values, values + ceil_div(a->columns, 64) * 64 + 64);
        if (a->finished) advance(a, r);
    }
}

#undef SIZE
#undef PER_WORD
#undef MULTIPLY
#undef ADD
#undef HALF
#undef T
