/* Float32 matrix products on the bfloat16 tiles of a processor (AMX). See tiles.py for what this is and when it is taken.
 *
 * A float32 number has 24 significant bits and is exactly the sum of three bfloat16 numbers of 8 bits each, its parts
 * 0, 1 and 2. A product of two such sums has nine terms, of which the six largest are computed: what is left out is at most
 * 2**-24 of the product, of either sign. Products of parts are exact, and the tiles add them up in float32.
 *
 * Words used below: the product is a (rows x sums) times b (sums x columns), and "sums" is the dimension that is added up.
 * A line is a row of a or a column of b. A matrix may lie in memory either way: "along" says that the numbers of a line are
 * next to each other, and the stride is what lies between two lines, or else between two places of the sum.
 */
#include <immintrin.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

enum {
    PARTS = 3,
    TILE = 16 * 32,           /* bfloat16 numbers of a tile: 16 lines, 32 places of the sum */
    STEP = PARTS * 2 * TILE,  /* of 32 lines and 32 places of the sum: two tiles for each part */
    ROWS = 256, SUMS = 768,   /* of a that a thread holds in its second-level cache at a time: 1.2 MB */
    COLUMNS = 1024,           /* of b that it prepares at a time where it was not prepared before: 4.7 MB */
    ALONE = 160,              /* rows that are worth a thread */
    SCRATCH = 1 << 18         /* numbers of a product up to which threads may each have one of their own */
};
enum { DONE = 0, OUT_OF_RANGE = 1, NO_MEMORY = 2 };

typedef __m512i bits;

static inline long least(long a, long b) { return a < b ? a : b; }
static inline long steps_of(long sums) { return (sums + 31) / 32; }
static inline __mmask16 first(long count) { return count >= 16 ? 0xffff : count <= 0 ? 0 : (1 << count) - 1; }

/* Asks the operating system for the tiles' registers, once for a process; 0 where it grants them. */
int zoo_tiles_enable(void) { return syscall(SYS_arch_prctl, 0x1023 /* ARCH_REQ_XCOMP_PERM */, 18 /* tile data */) != 0; }

/* The next part of 16 numbers, in their upper halves; they are left without it. Rounded to nearest, so that what the last part
 * leaves out has either sign. */
static inline bits next_part(__m512 *x) {
    bits nearest = _mm512_add_epi32(_mm512_castps_si512(*x), _mm512_set1_epi32(0x8000));
    bits part = _mm512_and_si512(nearest, _mm512_set1_epi32(0xffff0000));
    *x = _mm512_sub_ps(*x, _mm512_castsi512_ps(part));
    return part;
}

/* 16 x 16 pairs of bfloat16 numbers, turned. */
static void turn(const bits *in, uint16_t *out) {
    bits a[16], b[16];
    for (int i = 0; i < 16; i += 2) {
        a[i] = _mm512_unpacklo_epi32(in[i], in[i + 1]);
        a[i + 1] = _mm512_unpackhi_epi32(in[i], in[i + 1]);
    }
    for (int i = 0; i < 16; i += 4)
        for (int j = 0; j < 2; j++) {
            b[i + 2 * j] = _mm512_unpacklo_epi64(a[i + j], a[i + j + 2]);
            b[i + 2 * j + 1] = _mm512_unpackhi_epi64(a[i + j], a[i + j + 2]);
        }
    for (int j = 0; j < 4; j++) {
        bits even = _mm512_shuffle_i32x4(b[j], b[j + 4], 0x88), even_after = _mm512_shuffle_i32x4(b[j + 8], b[j + 12], 0x88);
        bits odd = _mm512_shuffle_i32x4(b[j], b[j + 4], 0xdd), odd_after = _mm512_shuffle_i32x4(b[j + 8], b[j + 12], 0xdd);
        _mm512_store_si512(out + 32 * j, _mm512_shuffle_i32x4(even, even_after, 0x88));
        _mm512_store_si512(out + 32 * (j + 4), _mm512_shuffle_i32x4(odd, odd_after, 0x88));
        _mm512_store_si512(out + 32 * (j + 8), _mm512_shuffle_i32x4(even, even_after, 0xdd));
        _mm512_store_si512(out + 32 * (j + 12), _mm512_shuffle_i32x4(odd, odd_after, 0xdd));
    }
}

/* A factor as it lies in memory. */
typedef struct { const float *x; long stride; int along; } matrix;

static inline matrix at(matrix of, long line, long sum) {
    of.x += of.along ? line * of.stride + sum : sum * of.stride + line;
    return of;
}

/* Up to 16 lines and 32 places of the sum -> one tile for each part, 2 * TILE apart; what is missing is zero.
 * A tile's row is a line, or with `pairs` two places of the sum for all lines, as the second factor needs it.
 * `highest` keeps the largest magnitudes seen, as integers, whose order is that of the numbers with infinity and NaN above. */
static void prepare_tile(matrix of, long lines, long sums, int pairs, uint16_t *out, bits *highest) {
    const bits magnitude = _mm512_set1_epi32(0x7fffffff);
    const bits upper = _mm512_set_epi16(63, 61, 59, 57, 55, 53, 51, 49, 47, 45, 43, 41, 39, 37, 35, 33,
                                        31, 29, 27, 25, 23, 21, 19, 17, 15, 13, 11, 9, 7, 5, 3, 1);
    bits parts[PARTS][16];
    for (int i = 0; i < 16; i++) {
        __m512 low = _mm512_setzero_ps(), high = low;
        if (of.along && i < lines) {
            low = _mm512_maskz_loadu_ps(first(sums), of.x + i * of.stride);
            high = _mm512_maskz_loadu_ps(first(sums - 16), of.x + i * of.stride + 16);
        } else if (!of.along) {
            if (2 * i < sums) low = _mm512_maskz_loadu_ps(first(lines), of.x + 2 * i * of.stride);
            if (2 * i + 1 < sums) high = _mm512_maskz_loadu_ps(first(lines), of.x + (2 * i + 1) * of.stride);
        }
        *highest = _mm512_max_epu32(*highest, _mm512_and_si512(_mm512_castps_si512(low), magnitude));
        *highest = _mm512_max_epu32(*highest, _mm512_and_si512(_mm512_castps_si512(high), magnitude));
        for (int p = 0; p < PARTS; p++) {
            const bits x = next_part(&low), y = next_part(&high);
            parts[p][i] = of.along ? _mm512_permutex2var_epi16(x, upper, y) : _mm512_or_si512(_mm512_srli_epi32(x, 16), y);
        }
    }
    for (int p = 0; p < PARTS; p++, out += 2 * TILE)
        if (of.along == pairs) turn(parts[p], out);
        else for (int i = 0; i < 16; i++) _mm512_store_si512(out + 32 * i, parts[p][i]);
}

/* Lines in panels of 32, each with its steps one after the other, and the next one `panel` numbers behind it. Memory is read in
 * the order in which it lies. */
static void prepare(matrix of, long lines, long sums, int pairs, uint16_t *out, long panel, bits *highest) {
    const long outer = of.along ? lines : sums, inner = of.along ? sums : lines;
    for (long u = 0; u < outer; u += 32)
        for (long v = 0; v < inner; v += 32) {
            const long line = of.along ? u : v, k = of.along ? v : u;
            for (long half = 0; half < 32; half += 16)
                prepare_tile(at(of, line + half, k), least(lines - line - half, 16), least(sums - k, 32), pairs,
                             out + line / 32 * panel + k / 32 * STEP + half * 32, highest);
        }
}

#define ONE(p) _tile_loadd(4, a + 2 * (p) * TILE, 64)
#define BOTH(p) ONE(p); _tile_loadd(5, a + (2 * (p) + 1) * TILE, 64)
#define WITH(p) _tile_loadd(6, b + 2 * (p) * TILE, 64); _tile_loadd(7, b + (2 * (p) + 1) * TILE, 64)
#define ADD_UPPER _tile_dpbf16ps(0, 4, 6); _tile_dpbf16ps(1, 4, 7)
#define ADD_ALL ADD_UPPER; _tile_dpbf16ps(2, 5, 6); _tile_dpbf16ps(3, 5, 7)

/* Asks memory for so many lines of it, of 64 bytes. */
static inline const uint16_t *fetch(const uint16_t *next, long lines) {
    for (long l = 0; l < lines; l++, next += 32) _mm_prefetch(next, _MM_HINT_T1);
    return next;
}

#define TERMS(LOAD, ADD) LOAD(0); WITH(2); ADD; WITH(1); ADD; LOAD(1); ADD; WITH(0); ADD; LOAD(2); ADD; LOAD(0); ADD

/* 32 rows x 32 columns of the product. Each term needs one part more than the one before it. On the way so many lines of what
 * comes next are fetched in each step. */
static void multiply_32(const uint16_t *a, const uint16_t *b, long steps, const uint16_t *next, long lines, float *c) {
    _tile_zero(0); _tile_zero(1); _tile_zero(2); _tile_zero(3);
    for (long k = 0; k < steps; k++, a += STEP, b += STEP) {
        next = fetch(next, lines);
        TERMS(BOTH, ADD_ALL);
    }
    _tile_stored(0, c, 128); _tile_stored(1, c + 16, 128); _tile_stored(2, c + 512, 128); _tile_stored(3, c + 528, 128);
}

/* The upper half of that, for up to 16 rows. */
static void multiply_16(const uint16_t *a, const uint16_t *b, long steps, const uint16_t *next, long lines, float *c) {
    _tile_zero(0); _tile_zero(1);
    for (long k = 0; k < steps; k++, a += STEP, b += STEP) {
        next = fetch(next, lines);
        TERMS(ONE, ADD_UPPER);
    }
    _tile_stored(0, c, 128); _tile_stored(1, c + 16, 128);
}

/* Writes a block, or adds it to what is there: a sum of sums is more exact than one long sum. */
static void deliver(const float *block, const float *bias, float *out, long stride, long rows, long columns, int add) {
    __mmask16 left = first(columns), right = first(columns - 16);
    __m512 low = _mm512_setzero_ps(), high = low;
    if (bias) low = _mm512_maskz_loadu_ps(left, bias), high = _mm512_maskz_loadu_ps(right, bias + 16);
    for (long r = 0; r < rows; r++, block += 32, out += stride) {
        __m512 x = _mm512_add_ps(_mm512_load_ps(block), low), y = _mm512_add_ps(_mm512_load_ps(block + 16), high);
        if (add) {
            x = _mm512_add_ps(x, _mm512_maskz_loadu_ps(left, out));
            y = _mm512_add_ps(y, _mm512_maskz_loadu_ps(right, out + 16));
        }
        _mm512_mask_storeu_ps(out, left, x);
        _mm512_mask_storeu_ps(out + 16, right, y);
    }
}

/* A product of prepared rows and columns, in blocks of 32 x 32; the columns of b that come next are fetched on the way. */
static void multiply(long rows, long columns, long steps, const uint16_t *a, const uint16_t *b, long panel_b, const float *bias,
                     float *c, long stride, int add, float *block) {
    const long blocks = (rows + 31) / 32, lines = blocks < 3 ? 0 : (STEP / 32 + blocks - 1) / blocks;
    for (long n = 0; n < columns; n += 32, b += panel_b)
        for (long m = 0; m < rows; m += 32) {
            const uint16_t *x = a + m / 32 * steps * STEP, *next = b + panel_b + m * steps * lines;
            if (rows - m > 16) multiply_32(x, b, steps, next, lines, block);
            else multiply_16(x, b, steps, next, lines, block);
            deliver(block, bias ? bias + n : 0, c + m * stride + n, stride, least(32, rows - m), least(32, columns - n), add);
        }
}

static void configure(void) {
    struct { uint8_t palette, start, none[14]; uint16_t bytes[16]; uint8_t rows[16]; } tiles = {.palette = 1};
    for (int i = 0; i < 8; i++) tiles.bytes[i] = 64, tiles.rows[i] = 16;
    _tile_loadconfig(&tiles);
}

/* One workspace is kept between calls, in large pages, since most of the time would go into asking for small ones. Who finds
 * it taken by another thread makes one more, of which one is kept. */
typedef struct { size_t bytes; } workspace;
static workspace *kept;
enum { HEAD = 64, PAGE = 1 << 21 };

static workspace *take(size_t numbers) {
    const size_t bytes = (HEAD + numbers * sizeof(uint16_t) + PAGE - 1) / PAGE * PAGE;
    workspace *found = __atomic_exchange_n(&kept, 0, __ATOMIC_ACQ_REL);
    if (found && found->bytes >= bytes) return found;
    if (found) munmap(found, found->bytes);
    char *memory = mmap(0, bytes + PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) return 0;
    char *aligned = (char *)(((uintptr_t)memory + PAGE - 1) / PAGE * PAGE);
    if (aligned > memory) munmap(memory, aligned - memory);
    if (aligned + bytes < memory + bytes + PAGE) munmap(aligned + bytes, memory + PAGE - aligned);
    madvise(aligned, bytes, MADV_HUGEPAGE);
    ((workspace *)aligned)->bytes = bytes;
    return (workspace *)aligned;
}

static void give_back(workspace *used) {
    workspace *other = __atomic_exchange_n(&kept, used, __ATOMIC_ACQ_REL);
    if (other) munmap(other, other->bytes);
}

static inline float as_float(bits highest) {
    uint32_t found = _mm512_reduce_max_epu32(highest);
    float x;
    memcpy(&x, &found, sizeof x);
    return x;
}

/* b, prepared: (columns in 32s) x (steps of the whole sum) x STEP numbers, on 64 bytes. Returns its largest magnitude. */
float zoo_tiles_prepare(const float *b, long stride, int along, long columns, long sums, uint16_t *out, int threads) {
    bits all = _mm512_setzero_si512();
    const matrix of = {b, stride, along};
    const long panel = steps_of(sums) * STEP, own = 256;
    #pragma omp parallel num_threads(threads)
    {
        bits highest = _mm512_setzero_si512();
        #pragma omp for
        for (long n = 0; n < columns; n += own)
            prepare(at(of, n, 0), least(own, columns - n), sums, 1, out + n / 32 * panel, panel, &highest);
        #pragma omp critical
        all = _mm512_max_epu32(all, highest);
    }
    return as_float(all);
}

typedef struct { long from, to; } range;
enum dimension { ROW, COLUMN, SUM };

/* The share of thread `id`: dimensions are halved again and again, the larger one first, so that little is prepared more than
 * once. Of a b that is prepared already nothing is, and rows are shared down to ALONE. The sum is shared only by itself. */
static void share(range *of, int threads, int id, int by_sums, int prepared) {
    while (threads > 1) {
        const int half = threads / 2, second = id >= half;
        const long rows = of[ROW].to - of[ROW].from, columns = of[COLUMN].to - of[COLUMN].from;
        const enum dimension d = by_sums ? SUM : rows > columns || (prepared && rows >= 2 * ALONE) ? ROW : COLUMN;
        const long unit = d == ROW ? 16 : 32, all = (of[d].to - of[d].from + unit - 1) / unit;
        const long middle = least(of[d].to, of[d].from + (all * half + threads / 2) / threads * unit);
        if (second) of[d].from = middle, id -= half, threads -= half;
        else of[d].to = middle, threads = half;
    }
}

/* c = a b + bias. Instead of b there may be `prepared`, with its largest magnitude in `highest_b`; there may be no bias. */
int zoo_tiles_multiply(long rows, long columns, long sums, const float *a, long a_stride, int a_along,
                       const float *b, long b_stride, int b_along, const uint16_t *prepared, float highest_b,
                       const float *bias, float *c, long c_stride, int threads) {
    const matrix x = {a, a_stride, a_along}, y = {b, b_stride, b_along};
    /* a weight's gradient has few numbers, each of a long sum */
    const int by_sums = !a_along && !prepared && rows * columns <= SCRATCH && 2 * sums > rows && 2 * sums > columns;
    const size_t space_a = (size_t)ROWS * SUMS * PARTS, space_b = prepared ? 0 : (size_t)COLUMNS * SUMS * PARTS;
    const size_t space_c = by_sums ? (size_t)(rows * columns + 31) / 32 * 64 : 0, each = space_a + space_b + space_c;
    workspace *const memory = take(threads * each);
    if (!memory) return NO_MEMORY;
    uint16_t *const space = (uint16_t *)((char *)memory + HEAD);
    bits all_a = _mm512_setzero_si512(), all_b = all_a;
    #pragma omp parallel num_threads(threads)
    {
        bits high_a = _mm512_setzero_si512(), high_b = high_a;
        float block[32 * 32] __attribute__((aligned(64)));
        configure();
        #pragma omp for schedule(static, 1)
        for (int id = 0; id < threads; id++) {
            uint16_t *const parts_a = space + id * each, *const parts_b = parts_a + space_a;
            float *const own = by_sums && id ? (float *)(parts_b + space_b) : c;
            const long stride = by_sums && id ? columns : c_stride;
            range of[] = {[ROW] = {0, rows}, [COLUMN] = {0, columns}, [SUM] = {0, sums}};
            share(of, threads, id, by_sums, !!prepared);
            if (of[SUM].from == of[SUM].to && by_sums) memset(own, 0, rows * columns * sizeof(float));
            for (long k = of[SUM].from; k < of[SUM].to; k += SUMS) {
                const long part = least(SUMS, of[SUM].to - k), panel = steps_of(part) * STEP;
                for (long n = of[COLUMN].from, width; n < of[COLUMN].to; n += width) {
                    width = least(prepared ? columns : COLUMNS, of[COLUMN].to - n);
                    if (!prepared) prepare(at(y, n, k), width, part, 1, parts_b, panel, &high_b);
                    for (long m = of[ROW].from; m < of[ROW].to; m += ROWS) {
                        const long height = least(ROWS, of[ROW].to - m);
                        prepare(at(x, m, k), height, part, 0, parts_a, panel, &high_a);
                        multiply(height, width, steps_of(part), parts_a,
                                 prepared ? prepared + (n / 32 * steps_of(sums) + k / 32) * STEP : parts_b,
                                 prepared ? steps_of(sums) * STEP : panel, bias && !k ? bias + n : 0,
                                 own + m * stride + n, stride, k > of[SUM].from, block);
                    }
                }
            }
        }
        _tile_release();
        if (by_sums) {
            #pragma omp for
            for (long m = 0; m < rows; m++)
                for (int id = 1; id < threads; id++) {
                    const float *more = (float *)(space + id * each + space_a + space_b) + m * columns;
                    for (long n = 0; n < columns; n++) c[m * c_stride + n] += more[n];
                }
        }
        #pragma omp critical
        all_a = _mm512_max_epu32(all_a, high_a), all_b = _mm512_max_epu32(all_b, high_b);
    }
    give_back(memory);
    /* Parts overflow a little below float32 does, and those of infinity are no numbers; far below, parts are lost to zero. */
    const float high_a = as_float(all_a), high_b = prepared ? highest_b : as_float(all_b);
    if (!(high_a < 3e38f && high_b < 3e38f && high_a * high_b * sums < 3e38f)) return OUT_OF_RANGE;
    return high_a > 0 && high_b > 0 && high_a * high_b < 1e-24f ? OUT_OF_RANGE : DONE;
}
