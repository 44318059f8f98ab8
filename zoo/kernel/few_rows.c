/* Float32 products of few rows with a large weight, which take as long as reading the weight. See few_rows.py.
 *
 * The weight lies in panels of 16 outputs: (outputs in 16s) x (inputs) x 16, of which there is a multiple of three. A thread
 * reads three panels side by side, each in the order in which it lies, since a processor fetches more of three streams than of
 * one, and multiplies what it holds by all rows. There are sums for a few rows only; more rows take several passes over the
 * same panels, which together, evenly, fetch what is read next: so memory and sums are busy at once, and not by turns.
 */
#include <immintrin.h>

enum { WIDTH = 16, STREAMS = 3, ROWS = 8 /* at a time: as many sums as there are registers */, AHEAD = 48 /* inputs */ };

static inline long least(long a, long b) { return a < b ? a : b; }
static inline __mmask16 first(long count) { return count >= WIDTH ? 0xffff : count <= 0 ? 0 : (1 << count) - 1; }

/* Which of the passes over three panels, and what is read behind them: three panels of as many inputs. */
struct pass { long number, of; const float *next; };

/* So many rows by three panels, of which `outputs` are wanted; rows, and whether there are several passes, are constants once
 * this is inlined. */
static inline __attribute__((always_inline)) void product(const int rows, const int several, long inputs, long outputs,
                                                          const float *x, long x_stride, const float *weight,
                                                          const float *bias, float *y, long y_stride, struct pass pass) {
    __m512 sums[STREAMS][ROWS];
    for (int s = 0; s < STREAMS; s++)
        for (int r = 0; r < rows; r++) sums[s][r] = _mm512_setzero_ps();
    /* the line to be fetched: of these panels in the first pass, behind their end in the others */
    long line = AHEAD + (several ? inputs * (pass.of - 1 + pass.number) / pass.of : 0), wait = 0;
    const long beyond = pass.next - weight - inputs * WIDTH;
    for (long k = 0; k < inputs; k++) {
        __m512 part[STREAMS];
        if (!several || --wait < 0) {
            const float *soon = weight + line * WIDTH + (line < inputs ? 0 : beyond);
            for (int s = 0; s < STREAMS; s++)
                if (several) _mm_prefetch(soon + s * inputs * WIDTH, _MM_HINT_T0);
                else _mm_prefetch(soon + s * inputs * WIDTH, _MM_HINT_T1);
            line++;
            wait = pass.of - 1;
        }
        for (int s = 0; s < STREAMS; s++) part[s] = _mm512_loadu_ps(weight + (s * inputs + k) * WIDTH);
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

#define PRODUCT(n, several) product(n, several, inputs, outputs, x, x_stride, weight, bias, y, y_stride, pass)
#define CASE(n) case n: if (pass.of > 1) PRODUCT(n, 1); else PRODUCT(n, 0); break;

static void some_rows(long rows, long inputs, long outputs, const float *x, long x_stride, const float *weight,
                      const float *bias, float *y, long y_stride, struct pass pass) {
    switch (rows) { CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6) CASE(7) CASE(8) }
}

/* All rows by three panels, of which `outputs` are wanted; behind them `next` is read. */
static void all_rows(long rows, long inputs, long outputs, const float *x, long x_stride, const float *weight,
                     const float *bias, float *y, long y_stride, const float *next) {
    const long passes = (rows + ROWS - 1) / ROWS;
    for (long n = 0; n < passes; n++) {
        const long r = rows * n / passes, end = rows * (n + 1) / passes;
        some_rows(end - r, inputs, outputs, x + r * x_stride, x_stride, weight, bias, y + r * y_stride, y_stride,
                  (struct pass){n, passes, next});
    }
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
    #pragma omp parallel for num_threads(threads) schedule(static)
    for (long n = 0; n < outputs; n += STREAMS * WIDTH)
        all_rows(rows, inputs, outputs - n, x, x_stride, panels + n * inputs, bias ? bias + n : 0, y + n, y_stride,
                 panels + (n + STREAMS * WIDTH) * inputs);
}
