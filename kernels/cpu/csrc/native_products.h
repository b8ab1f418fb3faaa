/* Products with packed weights for one type of numbers. The includer defines T(name), SIZE, PER_WORD
 * (numbers in 32 bits: what a lane takes at once), MULTIPLY(sum, x, w) and ADD(a, b) of 16 lanes. */

/* Bytes of the panel of a weight of k columns. */
INLINE i64 T(panel_bytes)(i64 k) { return ceil_div(k, PER_WORD) * PANEL * 4; }

/* Put row i of a panel, k numbers, in its place. */
INLINE void T(pack_row)(char *panel, i64 i, const char *row, i64 k) {
    for (i64 j = 0; j < k; j++) memcpy(panel + ((j / PER_WORD * PANEL + i) * PER_WORD + j % PER_WORD) * SIZE, row + j * SIZE, SIZE);
}

/* sums[r][0 .. PANEL) = x[r][0 .. k) times one panel, for rows of x that lie `stride` bytes apart and
 * rows of sums `apart` numbers. */
INLINE void T(tile_of)(const int rows, const char *x, i64 stride, const char *panel, i64 k, float *sums, i64 apart) {
    const i64 words = ceil_div(k, PER_WORD);
    const i64 block = PER_WORD == 4 ? words : BLOCK_K / PER_WORD; /* bytes add up exactly in any order */
    for (i64 from = 0; from < words; from += block) {
        const i64 to = min_of(from + block, words);
        __m512 a[MAX_ROWS], b[MAX_ROWS];
        for (int r = 0; r < rows; r++) a[r] = b[r] = _mm512_setzero_ps();
        /* Every third row has a pointer; the others are one or two strides further, which an x86
         * address can say. Twelve pointers would not fit the registers. */
        const char *base[MAX_ROWS / 3], *w = panel + from * PANEL * 4;
        for (int g = 0; g < MAX_ROWS / 3; g++) base[g] = x + 3 * g * stride + from * 4;
        for (i64 i = from; i < to; i++, w += PANEL * 4) {
            _mm_prefetch(w + AHEAD, _MM_HINT_T0);
            _mm_prefetch(w + AHEAD + 64, _MM_HINT_T0);
            const __m512 w0 = _mm512_loadu_ps(w), w1 = _mm512_loadu_ps(w + 64);
            for (int r = 0; r < rows; r++) {
                const __m512 v = _mm512_set1_ps(*(const float *)(base[r / 3] + r % 3 * stride));
                a[r] = MULTIPLY(a[r], v, w0);
                b[r] = MULTIPLY(b[r], v, w1);
            }
            for (int g = 0; g < MAX_ROWS / 3; g++) base[g] += 4;
        }
        for (int r = 0; r < rows; r++) {
            if (from) {
                a[r] = ADD(a[r], _mm512_loadu_ps(sums + r * apart));
                b[r] = ADD(b[r], _mm512_loadu_ps(sums + r * apart + 16));
            }
            _mm512_storeu_ps(sums + r * apart, a[r]);
            _mm512_storeu_ps(sums + r * apart + 16, b[r]);
        }
    }
}

/* The same for a number of rows that is known when it runs. */
INLINE void T(tile)(i64 rows, const char *x, i64 stride, const char *panel, i64 k, float *sums, i64 apart) {
    switch (rows) {
#define ROWS(r) case r: if (r <= MAX_ROWS) T(tile_of)(r, x, stride, panel, k, sums, apart); break;
        ROWS(1) ROWS(2) ROWS(3) ROWS(4) ROWS(5) ROWS(6) ROWS(7) ROWS(8) ROWS(9) ROWS(10) ROWS(11) ROWS(12)
#undef ROWS
    }
}

