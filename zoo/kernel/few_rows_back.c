/* Float32 products of few rows with a large matrix as it lies in memory, row by row. See few_rows_back.py.
 *
 * Each thread takes its share of the matrix's rows, a few at a time from beginning to end, adds what they give to sums of its own,
 * which its caches hold, and on the way fetches the next ones; at last the sums of all threads are added up.
 */
#include <omp.h>
#include <string.h>

#include "few_rows.c"

enum { TOGETHER = 32 /* rows of the matrix */ };

/* So many rows of x (a constant once this is inlined) by some rows and three times 16 columns of the matrix, added to y, or put
 * there. Every `passes` rows fetches as much of `next`; returns what is to be fetched then. */
static inline __attribute__((always_inline)) const float *add(const int rows, long together, long wanted, const float *x,
                                                              long x_stride, const float *matrix, long columns, float *y, int put,
                                                              const float *next, long passes) {
    __m512 sums[STREAMS][ROWS];
    __mmask16 there[STREAMS];
    for (int s = 0; s < STREAMS; s++) {
        there[s] = first(wanted - s * WIDTH);
        for (int r = 0; r < rows; r++)
            sums[s][r] = put ? _mm512_setzero_ps() : _mm512_maskz_loadu_ps(there[s], y + r * columns + s * WIDTH);
    }
    for (long k = 0, wait = 0; k < together; k++) {
        __m512 part[STREAMS];
        if (--wait < 0) {
            for (int s = 0; s < STREAMS; s++, next += WIDTH) _mm_prefetch(next, _MM_HINT_T1);
            wait = passes - 1;
        }
        for (int s = 0; s < STREAMS; s++) part[s] = _mm512_maskz_loadu_ps(there[s], matrix + k * columns + s * WIDTH);
        for (int r = 0; r < rows; r++) {
            const __m512 value = _mm512_set1_ps(x[r * x_stride + k]);
            for (int s = 0; s < STREAMS; s++) sums[s][r] = _mm512_fmadd_ps(value, part[s], sums[s][r]);
        }
    }
    for (int s = 0; s < STREAMS; s++)
        for (int r = 0; r < rows; r++) _mm512_mask_storeu_ps(y + r * columns + s * WIDTH, there[s], sums[s][r]);
    return next;
}

#define ADD(n) case n: return add(n, together, wanted, x, x_stride, matrix, columns, y, put, next, passes);

static const float *add_some(long rows, long together, long wanted, const float *x, long x_stride, const float *matrix,
                             long columns, float *y, int put, const float *next, long passes) {
    switch (rows) { ADD(1) ADD(2) ADD(3) ADD(4) ADD(5) ADD(6) ADD(7) ADD(8) }
    return next;
}

/* y = x matrix: (rows, inputs) x (inputs, columns) -> (rows, columns); `space` has room for as much for each further thread. */
void zoo_few_rows_back(long rows, long inputs, long columns, const float *x, long x_stride, const float *matrix, float *y,
                       float *space, int threads) {
    const long passes = (rows + ROWS - 1) / ROWS, numbers = rows * columns;
    #pragma omp parallel num_threads(threads)
    {
        const long thread = omp_get_thread_num(), team = omp_get_num_threads();
        const long from = inputs * thread / team, until = inputs * (thread + 1) / team;
        float *own = thread ? space + (thread - 1) * numbers : y;
        if (from == until) memset(own, 0, numbers * sizeof *own);
        for (long k = from; k < until; k += TOGETHER) {
            const float *next = matrix + (k + TOGETHER) * columns;
            for (long n = 0; n < columns; n += STREAMS * WIDTH)
                for (long p = 0; p < passes; p++) {
                    const long r = rows * p / passes, number = rows * (p + 1) / passes - r;
                    next = add_some(number, least(TOGETHER, until - k), columns - n, x + r * x_stride + k, x_stride,
                                    matrix + k * columns + n, columns, own + r * columns + n, k == from, next, passes);
                }
        }
        #pragma omp barrier
        #pragma omp for schedule(static)
        for (long n = 0; n < numbers; n++)
            for (long other = 0; other < team - 1; other++) y[n] += space[other * numbers + n];
    }
}
