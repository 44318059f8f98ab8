/* A block of a transformer for one token of each of a few texts, as a list of instructions that run in one call. See step.py.
 *
 * All that an instruction reads or writes but weights lies in places, each (rows) x (its size): place 0 is the tokens themselves.
 * Each instruction divides its work among the threads, which wait for each other behind it.
 */
#include <math.h>

#include "activation.c"
#include "few_rows.c"

enum { NORM, PRODUCT, ATTEND };
enum { PUT, ADD, MULTIPLY };
enum { KEYS = 64 /* scored at a time */, LARGEST = 256 /* features of a head */, MOST = 64 /* rows: as in few_rows.py */ };

struct instruction {
    long kind, from, to, inputs, outputs;
    const float *weight, *bias;
    long how;                                             /* what comes out is put there, added or multiplied */
    long activation;                                      /* of a product */
    long centred;                                         /* of a norm: whether it takes the mean off */
    long look, heads, shared, size, turned, interleaved;  /* of attention: which of the looks; features of a head that are turned */
    double number;                                        /* a norm's epsilon, or what scores are multiplied by */
};

/* What one attention looks at in this step. Of its own texts the last key and value are those of the token, put in place here. */
struct look {
    float *keys, *values;               /* (texts, key heads, room, size), from the first that is kept */
    long text, head, number, several;   /* strides; keys in all; how many rows share a text */
    const float *scores;                /* added to: (texts or 1, heads or 1, number); or none */
    long scores_text, scores_head, own;
    const float *cosine, *sine;         /* (rows or 1, turned / 2) */
    long angles;                        /* their stride */
};

static void norm(const struct instruction *it, long rows, const float *x, float *y) {
    #pragma omp for schedule(static)
    for (long r = 0; r < rows; r++) {
        const float *from = x + r * it->inputs;
        float *to = y + r * it->inputs;
        double sum = 0, squares = 0;
        if (it->centred) {
            #pragma omp simd reduction(+ : sum)
            for (long n = 0; n < it->inputs; n++) sum += from[n];
        }
        const double mean = sum / it->inputs;
        #pragma omp simd reduction(+ : squares)
        for (long n = 0; n < it->inputs; n++) squares += (from[n] - mean) * (from[n] - mean);
        const float scale = 1 / sqrt(squares / it->inputs + it->number), middle = mean;
        for (long n = 0; n < it->inputs; n++) {
            const float value = (from[n] - middle) * scale * it->weight[n] + (it->bias ? it->bias[n] : 0);
            to[n] = it->how == ADD ? to[n] + value : value;
        }
    }
}

static void multiply(const struct instruction *it, long rows, const float *x, float *y) {
    #pragma omp for schedule(static)
    for (long n = 0; n < it->outputs; n += STREAMS * WIDTH) {
        const float *panels = it->weight + n * it->inputs;
        const long wanted = least(STREAMS * WIDTH, it->outputs - n);
        float sums[MOST * STREAMS * WIDTH];
        all_rows(rows, it->inputs, wanted, x, it->inputs, panels, it->bias ? it->bias + n : 0, sums, STREAMS * WIDTH,
                 panels + STREAMS * WIDTH * it->inputs);
        for (long r = 0; r < rows; r++)
            for (long s = 0; s < wanted; s += WIDTH) {
                float *to = y + r * it->outputs + n + s;
                const __mmask16 some = first(wanted - s);
                __m512 value = activated(_mm512_maskz_loadu_ps(some, sums + r * STREAMS * WIDTH + s), it->activation);
                if (it->how == ADD) value = _mm512_add_ps(value, _mm512_maskz_loadu_ps(some, to));
                if (it->how == MULTIPLY) value = _mm512_mul_ps(value, _mm512_maskz_loadu_ps(some, to));
                _mm512_mask_storeu_ps(to, some, value);
            }
    }
}

/* One head's features: those at the front turned by the angles of the token's place. */
static void turn(const struct instruction *it, const float *from, float *to, const float *cosine, const float *sine) {
    const long pairs = cosine ? it->turned / 2 : 0, apart = it->interleaved ? 1 : pairs, step = it->interleaved ? 2 : 1;
    for (long n = 0; n < pairs; n++) {
        const float a = from[n * step], b = from[n * step + apart];
        to[n * step] = a * cosine[n] - b * sine[n];
        to[n * step + apart] = b * cosine[n] + a * sine[n];
    }
    for (long n = 2 * pairs; n < it->size; n++) to[n] = from[n];
}

/* What one query finds: (size) from (number) x (size). Where it may look at nothing, zeros. */
static inline __attribute__((always_inline)) void find(const int parts, long all_keys, long size, float scale,
                                                       const float *query, const float *keys, const float *values,
                                                       const float *added, float *found) {
    float scores[KEYS], largest = -INFINITY, total = 0;
    __m512 sums[LARGEST / WIDTH];
    for (long p = 0; p < parts; p++) sums[p] = _mm512_setzero_ps();
    for (long start = 0; start < all_keys; start += KEYS) {
        const long number = least(KEYS, all_keys - start);
        float most = largest;
        for (long n = 0; n < number; n++) {
            __m512 product = _mm512_setzero_ps();
            for (long p = 0; p < parts; p++) {
                const __mmask16 some = first(size - p * WIDTH);
                product = _mm512_fmadd_ps(_mm512_maskz_loadu_ps(some, query + p * WIDTH),
                                          _mm512_maskz_loadu_ps(some, keys + (start + n) * size + p * WIDTH), product);
            }
            scores[n] = _mm512_reduce_add_ps(product) * scale + (added ? added[start + n] : 0);
            most = scores[n] <= most ? most : scores[n];
        }
        if (most == -INFINITY) continue;
        const float before = largest == -INFINITY ? 0 : expf(largest - most);
        largest = most;
        total *= before;
        for (long n = 0; n < number; n += WIDTH) {
            const __mmask16 some = first(number - n);
            const __m512 weights = exponential(_mm512_sub_ps(_mm512_maskz_loadu_ps(some, scores + n), all(most)));
            _mm512_mask_storeu_ps(scores + n, some, weights);
            total += _mm512_mask_reduce_add_ps(some, weights);
        }
        for (long p = 0; p < parts; p++) sums[p] = _mm512_mul_ps(sums[p], all(before));
        for (long n = 0; n < number; n++)
            for (long p = 0; p < parts; p++) {
                const __m512 value = _mm512_maskz_loadu_ps(first(size - p * WIDTH), values + (start + n) * size + p * WIDTH);
                sums[p] = _mm512_fmadd_ps(all(scores[n]), value, sums[p]);
            }
    }
    for (long p = 0; p < parts; p++)
        _mm512_mask_storeu_ps(found + p * WIDTH, first(size - p * WIDTH), _mm512_mul_ps(sums[p], all(total > 0 ? 1 / total : 0)));
}

static void find_any(long all_keys, long size, float scale, const float *query, const float *keys, const float *values,
                     const float *added, float *found) {
    if (size == 64) find(4, all_keys, 64, scale, query, keys, values, added, found);  /* constants keep sums in registers */
    else if (size == 128) find(8, all_keys, 128, scale, query, keys, values, added, found);
    else find((size + WIDTH - 1) / WIDTH, all_keys, size, scale, query, keys, values, added, found);
}

/* (rows) x (heads, of the token's own texts also key and value heads) x (size) -> (rows) x (heads) x (size) */
static void attend(const struct instruction *it, const struct look *at, long rows, const float *x, float *y) {
    const long size = it->size, kept = it->heads / it->shared, both = it->heads + (at->own ? 2 * kept : 0);
    #pragma omp for collapse(2) schedule(static)
    for (long r = 0; r < rows; r++)
        for (long k = 0; k < kept; k++) {
            const long text = r / at->several;
            const float *row = x + r * both * size;
            const float *cosine = at->cosine ? at->cosine + r * at->angles : 0, *sine = cosine ? at->sine + r * at->angles : 0;
            float *keys = at->keys + text * at->text + k * at->head, *values = at->values + text * at->text + k * at->head;
            if (at->own) {
                turn(it, row + (it->heads + k) * size, keys + (at->number - 1) * size, cosine, sine);
                for (long n = 0; n < size; n++) values[(at->number - 1) * size + n] = row[(it->heads + kept + k) * size + n];
            }
            for (long head = k * it->shared; head < (k + 1) * it->shared; head++) {
                float query[LARGEST];
                turn(it, row + head * size, query, cosine, sine);
                const float *added = at->scores ? at->scores + text * at->scores_text + head * at->scores_head : 0;
                find_any(at->number, size, it->number, query, keys, values, added, y + (r * it->heads + head) * size);
            }
        }
}

/* tokens (rows, width) become those behind the block; `space` has room for all other places of so many rows. */
void zoo_step(const struct instruction *program, long count, const struct look *looks, long rows, float *tokens, float *space,
              int threads) {
    #pragma omp parallel num_threads(threads)
    for (long n = 0; n < count; n++) {
        const struct instruction *it = program + n;
        const float *from = it->from ? space + (it->from - 1) * rows : tokens;
        float *to = it->to ? space + (it->to - 1) * rows : tokens;
        switch (it->kind) {
            case NORM: norm(it, rows, from, to); break;
            case PRODUCT: multiply(it, rows, from, to); break;
            case ATTEND: attend(it, looks + it->look, rows, from, to); break;
        }
    }
}
