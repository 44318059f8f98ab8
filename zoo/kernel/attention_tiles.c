/* Attention in bfloat16 on the processor's tiles: see attention_tiles.py for what this is and when it is taken. The words and
 * the functions are those of tiles.c.
 *
 * For 32 queries at a time: their scores with all keys; the exponentials of these less the row's largest, rounded to bfloat16
 * as the products need them; the values mixed by these; and that divided by their sum. Scores and sums are float32.
 */
#include "tiles.c"
#include <math.h>

enum { QUERIES = 32 };

/* Of each: how far examples, heads and tokens are apart. The numbers of a token are next to each other. */
typedef struct { uint16_t *x; long example, head, token; } tensor;

/* Keys as columns, `size` numbers each: two tiles for every 32 keys and 32 numbers. */
static void lay_out_keys(const uint16_t *x, long stride, long keys, long size, uint16_t *out) {
    bits rows[16];
    for (long n = 0; n < keys; n += 32)
        for (long d = 0; d < size; d += 32)
            for (long k = n; k < n + 32; k += 16, out += TILE) {
                for (long i = 0; i < 16; i++)
                    rows[i] = k + i < keys ? _mm512_loadu_si512(x + (k + i) * stride + d) : _mm512_setzero_si512();
                turn(rows, out);
            }
}

/* Values as they are added up over keys: two tiles for every 32 of their numbers and 32 keys. */
static void lay_out_values(const uint16_t *x, long stride, long keys, long size, uint16_t *out) {
    const bits low = _mm512_set_epi16(47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40, 8,
                                      39, 7, 38, 6, 37, 5, 36, 4, 35, 3, 34, 2, 33, 1, 32, 0);
    const bits high = _mm512_add_epi16(low, _mm512_set1_epi16(16));
    for (long d = 0; d < size; d += 32)
        for (long n = 0; n < keys; n += 32, out += 2 * TILE)
            for (long i = 0; i < 16; i++) {
                const long k = n + 2 * i;
                const bits one = k < keys ? _mm512_loadu_si512(x + k * stride + d) : _mm512_setzero_si512();
                const bits two = k + 1 < keys ? _mm512_loadu_si512(x + (k + 1) * stride + d) : _mm512_setzero_si512();
                _mm512_store_si512(out + 32 * i, _mm512_permutex2var_epi16(one, low, two));
                _mm512_store_si512(out + TILE + 32 * i, _mm512_permutex2var_epi16(one, high, two));
            }
}

/* Up to 32 rows by 32 columns that are laid out. */
static void mix(const uint16_t *a, long stride, long rows, long steps, const uint16_t *b, float *c, long c_stride) {
    _tile_zero(0); _tile_zero(1); _tile_zero(2); _tile_zero(3);
    for (long k = 0; k < steps; k++, a += 32, b += 2 * TILE) {
        _tile_loadd(4, a, stride * 2); _tile_loadd(6, b, 64); _tile_loadd(7, b + TILE, 64);
        _tile_dpbf16ps(0, 4, 6); _tile_dpbf16ps(1, 4, 7);
        if (rows <= 16) continue;
        _tile_loadd(5, a + 16 * stride, stride * 2);
        _tile_dpbf16ps(2, 5, 6); _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(0, c, c_stride * 4); _tile_stored(1, c + 16, c_stride * 4);
    if (rows <= 16) return;
    _tile_stored(2, c + 16 * c_stride, c_stride * 4); _tile_stored(3, c + 16 * c_stride + 16, c_stride * 4);
}

/* 2^x for x up to 0, to 3e-6; what is no number stays none. */
static inline __m512 power(__m512 x) {
    x = _mm512_max_ps(_mm512_set1_ps(-1000), x);
    const __m512 n = _mm512_roundscale_ps(x, 0), r = _mm512_sub_ps(x, n);
    __m512 p = _mm512_set1_ps(1.33335581e-3f);
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(9.61812911e-3f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(5.55041087e-2f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.240226507f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.693147181f));
    return _mm512_scalef_ps(_mm512_fmadd_ps(p, r, _mm512_set1_ps(1)), n);
}

/* A row's exponentials in bfloat16, zero from `count` to `all`, which is whole 32s; returns their sum. */
static float exponentials(const float *scores, long count, long all, float scale, uint16_t *out) {
    const __m512 factor = _mm512_set1_ps(scale * 1.44269504f);
    __m512 highest = _mm512_set1_ps(-INFINITY), sum = _mm512_setzero_ps();
    for (long c = 0; c < count; c += 16)
        highest = _mm512_mask_max_ps(highest, first(count - c), highest, _mm512_loadu_ps(scores + c));
    highest = _mm512_set1_ps(_mm512_reduce_max_ps(highest));
    for (long c = 0; c < all; c += 32) {
        __m512 x = _mm512_mul_ps(_mm512_sub_ps(_mm512_loadu_ps(scores + c), highest), factor);
        __m512 y = _mm512_mul_ps(_mm512_sub_ps(_mm512_loadu_ps(scores + c + 16), highest), factor);
        x = _mm512_maskz_mov_ps(first(count - c), power(x)), y = _mm512_maskz_mov_ps(first(count - c - 16), power(y));
        sum = _mm512_add_ps(sum, _mm512_add_ps(x, y));
        _mm512_storeu_si512(out + c, (bits)_mm512_cvtne2ps_pbh(y, x));
    }
    return _mm512_reduce_add_ps(sum);
}

static inline void deliver_row(const float *x, float factor, uint16_t *out) {
    const __m512 low = _mm512_mul_ps(_mm512_load_ps(x), _mm512_set1_ps(factor));
    const __m512 high = _mm512_mul_ps(_mm512_load_ps(x + 16), _mm512_set1_ps(factor));
    _mm512_storeu_si512(out, (bits)_mm512_cvtne2ps_pbh(high, low));
}

/* `strides`: three of each, of the queries, keys, values and results. */
int zoo_tiles_attention(long examples, long heads, long tokens, long keys, long size, uint16_t *query, uint16_t *key,
                        uint16_t *value, uint16_t *result, const long *strides, float scale, int causal, int threads) {
    const tensor q = {query, strides[0], strides[1], strides[2]}, k = {key, strides[3], strides[4], strides[5]};
    const tensor v = {value, strides[6], strides[7], strides[8]}, y = {result, strides[9], strides[10], strides[11]};
    const long all = steps_of(keys) * 32, steps = size / 32, items = examples * heads;
    /* where heads are few, several threads share one */
    const long blocks = (tokens + QUERIES - 1) / QUERIES, shares = least(blocks, (4 * threads + items - 1) / items);
    const size_t each = 2 * all * size + QUERIES * (size + 3 * all);
    workspace *const memory = take(threads * each);
    if (!memory) return NO_MEMORY;
    #pragma omp parallel num_threads(threads)
    {
        float block[32 * 32] __attribute__((aligned(64))), sums[QUERIES];
        configure();
        #pragma omp for schedule(static, 1)
        for (int id = 0; id < threads; id++) {
            uint16_t *const by_key = (uint16_t *)((char *)memory + HEAD) + id * each, *const by_value = by_key + all * size;
            uint16_t *const some = by_value + all * size, *const weights = some + QUERIES * size;
            float *const scores = (float *)(weights + QUERIES * all);
            for (long item = id, known = -1; item < items * shares; item += threads) {
                const long e = item / shares / heads, h = item / shares % heads, share = item % shares;
                const uint16_t *const queries = q.x + e * q.example + h * q.head;
                uint16_t *const results = y.x + e * y.example + h * y.head;
                if (known != item / shares) {
                    lay_out_keys(k.x + e * k.example + h * k.head, k.token, keys, size, by_key);
                    lay_out_values(v.x + e * v.example + h * v.head, v.token, keys, size, by_value);
                    known = item / shares;
                }
                const long end = least(blocks * (share + 1) / shares * QUERIES, tokens);
                for (long m = blocks * share / shares * QUERIES; m < end; m += QUERIES) {
                    const long n = least(QUERIES, tokens - m), seen = causal ? least(all, m + QUERIES) : all;
                    const uint16_t *from = queries + m * q.token;
                    long stride = q.token;
                    if (n < QUERIES) {  /* there is nothing behind the last one that might be read */
                        for (long r = 0; r < n; r++) memcpy(some + r * size, from + r * stride, size * 2);
                        from = some, stride = size;
                    }
                    for (long c = 0; c < seen; c += 32) mix(from, stride, n, steps, by_key + c * size, scores + c, all);
                    for (long r = 0; r < n; r++) {
                        const long count = causal ? least(m + r + 1, keys) : keys;
                        sums[r] = exponentials(scores + r * all, count, seen, scale, weights + r * all);
                    }
                    for (long d = 0; d < size; d += 32) {
                        mix(weights, all, n, seen / 32, by_value + d * all, block, 32);
                        for (long r = 0; r < n; r++) deliver_row(block + 32 * r, 1 / sums[r], results + (m + r) * y.token + d);
                    }
                }
            }
        }
        _tile_release();
    }
    give_back(memory);
    return DONE;
}
