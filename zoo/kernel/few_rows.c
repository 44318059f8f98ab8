/* Float32 products of few rows with a large weight, which take as long as reading the weight. See few_rows.py.
 *
 * The weight lies in panels of 16 outputs: (outputs in 16s) x (inputs) x 16, of which there is a multiple of three. A thread
 * reads three panels side by side, each in the order in which it lies, since a processor fetches more of three streams than of
 * one, and multiplies what it holds by all rows.
 */
#include <immintrin.h>

enum { WIDTH = 16, STREAMS = 3, ROWS = 8 /* at a time: as many sums as there are registers */, AHEAD = 48 /* inputs */ };

static inline long least(long a, long b) { return a < b ? a : b; }
static inline __mmask16 first(long count) { return count >= WIDTH ? 0xffff : count <= 0 ? 0 : (1 << count) - 1; }

/* So many rows (a constant once this is inlined) by three panels, of which `outputs` are wanted. */
static inline __attribute__((always_inline)) void product(const int rows, long inputs, long outputs, const float *x,
                                                          long x_stride, const float *weight, const float *bias, float *y,
                                                          long y_stride) {
    __m512 sums[STREAMS][ROWS];
    for (int s = 0; s < STREAMS; s++)
        for (int r = 0; r < rows; r++) sums[s][r] = _mm512_setzero_ps();
    for (long k = 0; k < inputs; k++, weight += WIDTH) {
        __m512 part[STREAMS];
        /* behind the end of a panel the next that will be read there */
        const float *next = weight + AHEAD * WIDTH + (k + AHEAD < inputs ? 0 : (STREAMS - 1) * inputs * WIDTH);
        for (int s = 0; s < STREAMS; s++) {
            _mm_prefetch(next + s * inputs * WIDTH, _MM_HINT_T1);
            part[s] = _mm512_loadu_ps(weight + s * inputs * WIDTH);
        }
        for (int r = 0; r < rows; r++) {
            const __m512 value = _mm512_set1_ps(x[r * x_stride + k]);
            for (int s = 0; s < STREAMS; s++) sums[s][r] = _mm512_fmadd_ps(value, part[s], sums[s][r]);
        }
    }
    for (int s = 0; s < STREAMS; s++) {
        const __mmask16 wanted = first(outputs - s * WIDTH);
        const __m512 added = bias ? _mm512_maskz_loadu_ps(wanted, bias + s * WIDTH) : _mm512_setzero_ps();
        for (int r = 0; r < rows; r++)
            _mm512_mask_storeu_ps(y + r * y_stride + s * WIDTH, wanted, _mm512_add_ps(sums[s][r], added));
    }
}

#define CASE(n) case n: product(n, inputs, outputs, x, x_stride, weight, bias, y, y_stride); break;

static void some_rows(long rows, long inputs, long outputs, const float *x, long x_stride, const float *weight,
                      const float *bias, float *y, long y_stride) {
    switch (rows) { CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6) CASE(7) CASE(8) }
}

/* (outputs, inputs), contiguous -> panels; what is missing in the last is zero. */
void zoo_few_rows_prepare(long outputs, long inputs, const float *weight, float *panels, int threads) {
    const __m512i numbers = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    const __m512i lines = _mm512_mullo_epi32(numbers, _mm512_set1_epi32(inputs));
    const long padded = (outputs + STREAMS * WIDTH - 1) / (STREAMS * WIDTH) * STREAMS * WIDTH;
    #pragma omp parallel for num_threads(threads) schedule(static)
    for (long n = 0; n < padded; n += WIDTH)
        for (long k = 0; k < inputs; k++) {
            const float *from = weight + n * inputs + k;
            _mm512_storeu_ps(panels + n * inputs + k * WIDTH,
                             _mm512_mask_i32gather_ps(_mm512_setzero_ps(), first(outputs - n), lines, from, sizeof *from));
        }
}

/* y = x weight + bias, (rows, inputs) -> (rows, outputs); there may be no bias. */
void zoo_few_rows_multiply(long rows, long outputs, long inputs, const float *x, long x_stride, const float *panels,
                           const float *bias, float *y, long y_stride, int threads) {
    const long parts = (rows + ROWS - 1) / ROWS, together = (rows + parts - 1) / parts;
    #pragma omp parallel for num_threads(threads) schedule(static)
    for (long n = 0; n < outputs; n += STREAMS * WIDTH)
        for (long r = 0; r < rows; r += together)
            some_rows(least(together, rows - r), inputs, outputs - n, x + r * x_stride, x_stride, panels + n * inputs,
                      bias ? bias + n : 0, y + r * y_stride + n, y_stride);
}
