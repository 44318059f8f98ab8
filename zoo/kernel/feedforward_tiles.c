/* A feed-forward layer with GELU, forward and backward, in float32 on the tiles: see feedforward_tiles.py for what this is and
 * when it is taken. The words and the functions are those of tiles.c.
 *
 * y = gelu(x up' + up_bias) down' + down_bias, where x is (rows x width), up is (hidden x width) and down is (width x hidden).
 * Rows go through all of it in blocks, so that what lies between the two products stays in the cache. Of that only the hidden
 * numbers before GELU are kept; the backward pass computes the others again.
 */
#include "tiles.c"

enum { BLOCK = 128 };

typedef struct { float *up, *up_bias, *down, *down_bias; } weights;

/* What GELU needs of 16 numbers x: the share of normal numbers below x, and their density at x. The share beyond |x| is
 * exp(-x^2 / 2) times a polynomial of 1 / (1 + 0.35 |x| / sqrt(2)), fitted to 3e-9, which is exact for small shares, too. */
static inline __m512 normal(__m512 x, __m512 *density) {
    const __m512 one = _mm512_set1_ps(1), from = _mm512_fmadd_ps(_mm512_abs_ps(x), _mm512_set1_ps(0.247487373f), one);
    __m512 t = _mm512_rcp14_ps(from);
    t = _mm512_mul_ps(t, _mm512_fnmadd_ps(from, t, _mm512_set1_ps(2)));
    /* e^y as 2^n e^r */
    const __m512 y = _mm512_max_ps(_mm512_mul_ps(_mm512_mul_ps(x, x), _mm512_set1_ps(-0.5f)), _mm512_set1_ps(-104));
    const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(y, _mm512_set1_ps(1.44269504f)), 0);
    const __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4f), _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), y));
    __m512 e = _mm512_set1_ps(1.0f / 720);
    e = _mm512_fmadd_ps(e, r, _mm512_set1_ps(1.0f / 120));
    e = _mm512_fmadd_ps(e, r, _mm512_set1_ps(1.0f / 24));
    e = _mm512_fmadd_ps(e, r, _mm512_set1_ps(1.0f / 6));
    e = _mm512_fmadd_ps(e, r, _mm512_set1_ps(0.5f));
    e = _mm512_fmadd_ps(e, r, one);
    e = _mm512_scalef_ps(_mm512_fmadd_ps(e, r, one), n);
    __m512 p = _mm512_set1_ps(-0.098597165f);
    p = _mm512_fmadd_ps(p, t, _mm512_set1_ps(0.384334131f));
    p = _mm512_fmadd_ps(p, t, _mm512_set1_ps(-0.336734775f));
    p = _mm512_fmadd_ps(p, t, _mm512_set1_ps(0.338616926f));
    p = _mm512_fmadd_ps(p, t, _mm512_set1_ps(-0.00216145085f));
    p = _mm512_fmadd_ps(p, t, _mm512_set1_ps(0.117293313f));
    p = _mm512_fmadd_ps(p, t, _mm512_set1_ps(0.0972489967f));
    const __m512 beyond = _mm512_mul_ps(_mm512_mul_ps(p, t), e);
    *density = _mm512_mul_ps(e, _mm512_set1_ps(0.398942280f));
    return _mm512_mask_sub_ps(beyond, _mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_GT_OQ), one, beyond);
}

/* GELU of the hidden numbers; where there is a gradient of the results, that becomes the gradient of the hidden numbers. */
static void gelu(const float *hidden, long numbers, float *out, float *gradient) {
    for (long i = 0; i < numbers; i += 16) {
        const __mmask16 here = first(numbers - i);
        const __m512 x = _mm512_maskz_loadu_ps(here, hidden + i);
        __m512 density;
        const __m512 share = normal(x, &density);
        _mm512_mask_storeu_ps(out + i, here, _mm512_mul_ps(x, share));
        if (!gradient) continue;
        __m512 g = _mm512_maskz_loadu_ps(here, gradient + i);
        g = _mm512_mul_ps(g, _mm512_fmadd_ps(x, density, share));
        _mm512_mask_storeu_ps(gradient + i, here, g);
    }
}

/* Adds all rows to `sum`: those of a block first by themselves, since a sum of sums is more exact than one long sum. */
static void add_rows(const float *x, long rows, long columns, float *sum) {
    for (long c = 0; c < columns; c += 16) {
        const __mmask16 here = first(columns - c);
        __m512 all = _mm512_setzero_ps(), part = all;
        for (long r = 0; r < rows; r++) {
            part = _mm512_add_ps(part, _mm512_maskz_loadu_ps(here, x + r * columns + c));
            if (r % 16 == 15 || r == rows - 1) all = _mm512_add_ps(all, part), part = _mm512_setzero_ps();
        }
        _mm512_mask_storeu_ps(sum + c, here, _mm512_add_ps(all, _mm512_maskz_loadu_ps(here, sum + c)));
    }
}

static inline size_t even(size_t numbers) { return (numbers + 31) / 32 * 32; }
static inline size_t parts_of(long lines, long sums) { return (size_t)steps_of(lines) * steps_of(sums) * STEP; }
static inline int holds(bits high_a, bits high_b, long sums) {
    const float a = as_float(high_a), b = as_float(high_b);
    return a < 3e38f && b < 3e38f && a * b * sums < 3e38f && !(a > 0 && b > 0 && a * b < 1e-24f);
}
static inline void raise_to(bits *all, bits own) { *all = _mm512_max_epu32(*all, own); }

/* The second factor of a product, its lines shared by all threads. */
static void prepare_together(matrix of, long lines, long sums, uint16_t *out, bits *highest) {
    const long panel = steps_of(sums) * STEP;
    #pragma omp for
    for (long n = 0; n < lines; n += 32)
        prepare(at(of, n, 0), least(32, lines - n), sums, 1, out + n / 32 * panel, panel, highest);
}

/* The rows of a thread. */
static range own_rows(long rows, int id, int threads) {
    const long blocks = (rows + 15) / 16;
    return (range){blocks * id / threads * 16, least(blocks * (id + 1) / threads * 16, rows)};
}

/* Adds what the other threads have summed up, `each` bfloat16 numbers apart. */
static void add_up(float *sum, const float *others, long numbers, size_t each, int threads) {
    for (int id = 1; id < threads; id++) {
        const float *const more = (const float *)((const uint16_t *)others + id * each);
        #pragma omp for
        for (long i = 0; i < numbers; i++) sum[i] += more[i];
    }
}

/* y, and the hidden numbers before GELU. */
int zoo_tiles_mlp(long rows, long width, long hidden, const float *x, const float *up, const float *up_bias, const float *down,
                  const float *down_bias, float *before, float *y, int threads) {
    const long steps_up = steps_of(width), steps_down = steps_of(hidden);
    const size_t all = parts_of(hidden, width) + parts_of(width, hidden);
    const size_t space_x = parts_of(BLOCK, width), space_h = parts_of(BLOCK, hidden);
    const size_t each = space_x + space_h + 2 * even(BLOCK * hidden);
    workspace *const memory = take(all + threads * each);
    if (!memory) return NO_MEMORY;
    uint16_t *const by_up = (uint16_t *)((char *)memory + HEAD), *const by_down = by_up + parts_of(hidden, width);
    bits high[4] = {_mm512_setzero_si512()};
    for (int i = 1; i < 4; i++) high[i] = high[0];
    #pragma omp parallel num_threads(threads)
    {
        bits h[4] = {_mm512_setzero_si512()};
        for (int i = 1; i < 4; i++) h[i] = h[0];
        float block[32 * 32] __attribute__((aligned(64)));
        configure();
        prepare_together((matrix){up, width, 1}, hidden, width, by_up, h);
        prepare_together((matrix){down, hidden, 1}, width, hidden, by_down, h + 1);
        #pragma omp for schedule(static, 1)
        for (int id = 0; id < threads; id++) {
            uint16_t *const parts_x = by_up + all + id * each, *const parts_h = parts_x + space_x;
            float *const after = (float *)(parts_h + space_h);
            const range own = own_rows(rows, id, threads);
            for (long m = own.from, n; m < own.to; m += n) {
                n = least(BLOCK, own.to - m);
                prepare((matrix){x + m * width, width, 1}, n, width, 0, parts_x, steps_up * STEP, h + 2);
                multiply(n, hidden, steps_up, parts_x, by_up, steps_up * STEP, up_bias, before + m * hidden, hidden, 0, block);
                gelu(before + m * hidden, n * hidden, after, 0);
                prepare((matrix){after, hidden, 1}, n, hidden, 0, parts_h, steps_down * STEP, h + 3);
                multiply(n, width, steps_down, parts_h, by_down, steps_down * STEP, down_bias, y + m * width, width, 0, block);
            }
        }
        _tile_release();
        #pragma omp critical
        for (int i = 0; i < 4; i++) raise_to(high + i, h[i]);
    }
    give_back(memory);
    return holds(high[2], high[0], width) && holds(high[3], high[1], hidden) ? DONE : OUT_OF_RANGE;
}

/* All gradients, of y's and of the hidden numbers before GELU. `of_x` may be missing. */
int zoo_tiles_mlp_backward(long rows, long width, long hidden, const float *x, const float *before, const float *up,
                           const float *down, const float *gradient, float *of_x, float *of_up, float *of_up_bias,
                           float *of_down, float *of_down_bias, int threads) {
    const long steps_w = steps_of(width), steps_h = steps_of(hidden), weight = even(width * hidden);
    const size_t all = parts_of(hidden, width) + parts_of(width, hidden);
    const size_t space_w = parts_of(width, BLOCK), space_h = parts_of(hidden, BLOCK);
    const size_t numbers = 2 * even(BLOCK * hidden) + 2 * weight + even(hidden) + even(width);
    const size_t each = space_w + space_h + 2 * numbers;
    workspace *const memory = take(all + threads * each);
    if (!memory) return NO_MEMORY;
    uint16_t *const by_down = (uint16_t *)((char *)memory + HEAD), *const by_up = by_down + parts_of(hidden, width);
    bits high[6] = {_mm512_setzero_si512()};
    for (int i = 1; i < 6; i++) high[i] = high[0];
    #pragma omp parallel num_threads(threads)
    {
        bits h[6] = {_mm512_setzero_si512()};
        for (int i = 1; i < 6; i++) h[i] = h[0];
        float block[32 * 32] __attribute__((aligned(64)));
        configure();
        prepare_together((matrix){down, hidden, 0}, hidden, width, by_down, h);
        prepare_together((matrix){up, width, 0}, width, hidden, by_up, h + 1);
        #pragma omp for schedule(static, 1)
        for (int id = 0; id < threads; id++) {
            uint16_t *const parts_w = by_down + all + id * each, *const parts_h = parts_w + space_w;
            float *const after = (float *)(parts_h + space_h), *const of_h = after + even(BLOCK * hidden);
            float *const own = of_h + even(BLOCK * hidden);
            const weights sums = id ? (weights){own, own + 2 * weight, own + weight, own + 2 * weight + even(hidden)}
                                    : (weights){of_up, of_up_bias, of_down, of_down_bias};
            memset(sums.up_bias, 0, hidden * sizeof(float)), memset(sums.down_bias, 0, width * sizeof(float));
            const range mine = own_rows(rows, id, threads);
            if (mine.from == mine.to)
                memset(sums.up, 0, width * hidden * sizeof(float)), memset(sums.down, 0, width * hidden * sizeof(float));
            for (long m = mine.from, n; m < mine.to; m += n) {
                n = least(BLOCK, mine.to - m);
                const long panel = steps_of(n) * STEP, add = m > mine.from;
                const float *const g = gradient + m * width;
                prepare((matrix){g, width, 1}, n, width, 0, parts_w, steps_w * STEP, h + 2);
                multiply(n, hidden, steps_w, parts_w, by_down, steps_w * STEP, 0, of_h, hidden, 0, block);
                gelu(before + m * hidden, n * hidden, after, of_h);
                add_rows(of_h, n, hidden, sums.up_bias);
                add_rows(g, n, width, sums.down_bias);
                prepare((matrix){g, width, 0}, width, n, 0, parts_w, panel, h + 2);
                prepare((matrix){after, hidden, 0}, hidden, n, 1, parts_h, panel, h + 3);
                multiply(width, hidden, steps_of(n), parts_w, parts_h, panel, 0, sums.down, hidden, add, block);
                prepare((matrix){of_h, hidden, 0}, hidden, n, 0, parts_h, panel, h + 4);
                prepare((matrix){x + m * width, width, 0}, width, n, 1, parts_w, panel, h + 5);
                multiply(hidden, width, steps_of(n), parts_h, parts_w, panel, 0, sums.up, width, add, block);
                if (!of_x) continue;
                prepare((matrix){of_h, hidden, 1}, n, hidden, 0, parts_h, steps_h * STEP, h + 4);
                multiply(n, width, steps_h, parts_h, by_up, steps_h * STEP, 0, of_x + m * width, width, 0, block);
            }
        }
        _tile_release();
        const float *const others = (float *)(by_down + all + space_w + space_h) + 2 * even(BLOCK * hidden);
        add_up(of_up, others, width * hidden, each, threads);
        add_up(of_down, others + weight, width * hidden, each, threads);
        add_up(of_up_bias, others + 2 * weight, hidden, each, threads);
        add_up(of_down_bias, others + 2 * weight + even(hidden), width, each, threads);
        #pragma omp critical
        for (int i = 0; i < 6; i++) raise_to(high + i, h[i]);
    }
    give_back(memory);
    return holds(high[2], high[0], width) && holds(high[2], high[3], rows) && holds(high[4], high[5], rows)
        && holds(high[4], high[1], hidden) ? DONE : OUT_OF_RANGE;
}
