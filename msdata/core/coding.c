/* Quantizes float32 pixels to integers of a step, and turns stored records back into pixels.
 *
 * Why C: a pixel costs NumPy ten passes over memory, and the GIL in between. Encoding is one pass per
 * plane; decoding runs over all records of a batch's chunk without the GIL, through a buffer that
 * stays in the first-level cache, and streams its results to the batch. The module is optional:
 * msdata/dataset/quantize.py computes the same bits with NumPy and says what they mean.
 *
 * decode(table, first, stop, specs, scratch, decompress): table is int64 (rows, 5), each row one
 * array of one record:
 *     address of the stored bytes, their number, address of the target, address of the steps, kind
 * specs is int64 (arrays, 5), and row r has the array r % arrays:
 *     planes, pixels per plane, bytes per value, what to make, whether the bytes are compressed
 * scratch is memory for the codes and the record of the largest array. decompress is the address of Blosc's
 * blosc_decompress_ctx. Returns the first row that is not sound, or stop.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

#include "streaming.h"

#define INTERFACE 2 /* what msdata/dataset/coding.py expects */
#define CHUNK 1024  /* pixels at a time: with their codes they stay in the first-level cache */
#define SLACK 64 /* scratch behind the codes */
#define BITSHUFFLED 0x4 /* flags of Blosc's header */
#define COPIED 0x2
#define NUM_SPECIALS 8
#define MAX_CODE (1 << 21)  /* twice that, and rounding of float32 could move a code */
#define MAX_SHORT_CODE 32760
#define SIGMA_PIXELS 2048 /* that many are looked at, to twice as many */
#define MIN_SIGMA_PIXELS 32
#define MAX_LAG 24
#define COUNTS_PER_STEP 20.0f

enum { PLAIN, SHORT, LONG };         /* kinds of stored codes */
enum { BYTES, PIXELS, SHORTS, LONGS }; /* what decode makes */

static const uint32_t SPECIALS[NUM_SPECIALS] = {0x7fc00000u, 0xffc00000u, 0x7fffffffu, 0xffffffffu,
                                                0x80000000u, 0x7f800000u, 0xff800000u, 0x7fc00000u};

typedef int (*decompress_t)(const void *source, void *target, size_t nbytes, int num_threads);

static inline uint32_t bits_of(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, 4);
    return bits;
}

static inline int is_special(uint32_t bits)
{
    return (bits & 0x7f800000u) == 0x7f800000u || bits == 0x80000000u;
}

/* Number of a special in the table; -1 if it is another NaN. */
static int special_of(uint32_t bits)
{
    for (int k = 0; k < NUM_SPECIALS - 1; k++)
        if (SPECIALS[k] == bits)
            return k;
    return -1;
}

/* Compiles a function for AVX2 too; glibc selects one for this CPU when it loads the module. */
#if defined(__x86_64__) && defined(__GLIBC__)
#define VECTORS static __attribute__((target_clones("avx2", "default")))
#else
#define VECTORS static
#endif

/* ---- the noise of a plane ---- */

/* The value of rank k, by bisection: every pass over the keys settles one bit. */
VECTORS void select_key(const int32_t *keys, int n, int k, int32_t *found)
{
    uint32_t low = 0x80000000u;
    for (int bit = 31; bit >= 0; bit--) {
        uint32_t next = low + (1u << bit);
        int32_t limit = (int32_t)next;
        int num_below = 0;
        for (int i = 0; i < n; i++)
            num_below += keys[i] < limit;
        if (num_below <= k)
            low = next;
    }
    *found = (int32_t)low;
}

/* The same for the upper halves of magnitudes, which settle them to 0.8 %. */
VECTORS void select_half(const int16_t *keys, int n, int k, int32_t *found)
{
    int32_t low = 0;
    for (int bit = 14; bit >= 0; bit--) {
        int16_t limit = (int16_t)(low + (1 << bit)), num_below = 0;
        for (int i = 0; i < n; i++)
            num_below += keys[i] < limit;
        if (num_below <= k)
            low = limit;
    }
    *found = low;
}

static float float_of(int32_t bits)
{
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

static float lower_median(const float *values, int n)
{
    int32_t keys[2 * SIGMA_PIXELS], found;
    for (int i = 0; i < n; i++) {
        int32_t bits = (int32_t)bits_of(values[i]);
        keys[i] = bits ^ ((bits >> 31) & INT32_MAX); /* ordered as the values are */
    }
    select_key(keys, n, (n - 1) / 2, &found);
    return float_of(found ^ ((found >> 31) & INT32_MAX));
}

static float median_magnitude(const float *values, int n)
{
    int16_t keys[2 * SIGMA_PIXELS];
    int32_t found;
    for (int i = 0; i < n; i++)
        keys[i] = (int16_t)((bits_of(values[i]) & INT32_MAX) >> 16);
    select_half(keys, n, (n - 1) / 2, &found);
    return float_of(found << 16);
}

static inline int is_pixel(float value)
{
    return value != 0.0f && (bits_of(value) & 0x7f800000u) != 0x7f800000u;
}

/* The step of a plane's noise; 0 if it has none that can be measured. */
static float noise_step(const float *plane, Py_ssize_t n, float quantize)
{
    float pixels[2 * SIGMA_PIXELS], lags[2 * SIGMA_PIXELS], smallest = INFINITY;
    int num_pixels = 0, num_lags = 0;
    const Py_ssize_t stride = (n / SIGMA_PIXELS) | 1, half = (Py_ssize_t)sqrt((double)n) / 2;
    const Py_ssize_t distance = half < MAX_LAG ? half : MAX_LAG;
    for (Py_ssize_t i = 0; i < n && num_pixels < 2 * SIGMA_PIXELS; i += stride) {
        if (!is_pixel(plane[i]))
            continue;
        pixels[num_pixels++] = plane[i];
        if (i + distance < n && is_pixel(plane[i + distance])) {
            float lag = fabsf(plane[i] - plane[i + distance]);
            lags[num_lags++] = lag;
            smallest = lag > 0.0f && lag < smallest ? lag : smallest;
        }
    }
    if (num_pixels < MIN_SIGMA_PIXELS)
        return 0.0f;
    float center = lower_median(pixels, num_pixels);
    for (int i = 0; i < num_pixels; i++)
        pixels[i] -= center;
    float sigma = median_magnitude(pixels, num_pixels) * 1.4826f;
    if (num_lags >= MIN_SIGMA_PIXELS) {
        float lagged = median_magnitude(lags, num_lags) * 1.0483564f;
        if (lagged < sigma)
            sigma = lagged;
    }
    float step = sigma / quantize;
    return (float)num_lags >= COUNTS_PER_STEP * quantize && smallest >= step ? 0.0f : step;
}

/* ---- float32 to codes ---- */

/* Largest magnitude of finite pixels, as bits, and whether any is special. */
VECTORS void scan(const float *plane, Py_ssize_t n, uint32_t *largest, int *has_special)
{
    int32_t most = 0, special = 0;
    for (Py_ssize_t i = 0; i < n; i++) {
        int32_t bits = (int32_t)bits_of(plane[i]);
        int32_t magnitude = bits & INT32_MAX;
        int32_t is_finite = magnitude < 0x7f800000 ? -1 : 0;
        int32_t finite = magnitude & is_finite;
        most = finite > most ? finite : most;
        special |= ~is_finite | (bits == INT32_MIN);
    }
    *largest = (uint32_t)most;
    *has_special = special != 0;
}

/* Codes of a chunk; tells whether pixels are special, whose codes come out wrong. */
VECTORS void quantize_chunk(const float *pixels, int n, float step, int32_t *codes,
                           int *has_special)
{
    int32_t special = 0;
    for (int i = 0; i < n; i++) {
        float ratio = fabsf(pixels[i] / step);
        int32_t bits = (int32_t)bits_of(pixels[i]), sign = bits >> 31;
        int32_t code = (int32_t)(ratio < 2 * MAX_CODE ? ratio : 0.0f) + 1;
        code = (code ^ sign) - sign;
        codes[i] = (bits & INT32_MAX) == 0 ? 0 : code;
        special |= ((bits & INT32_MAX) >= 0x7f800000) | (bits == INT32_MIN);
    }
    *has_special = special;
}

VECTORS void store_codes(const int32_t *codes, int n, int is_short, int is_zigzag, char *out)
{
    if (is_short) {
        uint16_t *to = (uint16_t *)out;
        if (is_zigzag)
            for (int i = 0; i < n; i++)
                to[i] = (uint16_t)((codes[i] * 2) ^ (codes[i] >> 31));
        else
            for (int i = 0; i < n; i++)
                to[i] = (uint16_t)codes[i];
    } else {
        uint32_t *to = (uint32_t *)out;
        for (int i = 0; i < n; i++) {
            uint32_t code = (uint32_t)codes[i];
            to[i] = is_zigzag ? (code << 1) ^ (uint32_t)(codes[i] >> 31) : code;
        }
    }
}

/* ---- codes to float32 ---- */

/* Middle of each short code's bin, and whether some may be special, in one pass: the word z of a
 * zigzag code is odd for -(z + 1) / 2, even for z / 2, so twice its middle is -z, or z - 1. */
VECTORS void shorts_to_pixels(const uint16_t *source, int n, int is_zigzag, float half,
                             float *pixels, int *has_special)
{
    uint16_t most = 0;
    if (is_zigzag) {
        for (int i = 0; i < n; i++) {
            int32_t word = source[i], odd = -(word & 1);
            most = source[i] > most ? source[i] : most;
            pixels[i] = (float)(((word ^ odd) - odd) - ((word != 0) & ~odd)) * half;
        }
        *has_special = most > UINT16_MAX - 2 * NUM_SPECIALS;
    } else {
        int32_t lowest = 0;
        for (int i = 0; i < n; i++) {
            int32_t code = (int16_t)source[i];
            lowest = code < lowest ? code : lowest;
            pixels[i] = (float)(code * 2 - ((code > 0) - (code < 0))) * half;
        }
        *has_special = lowest < INT16_MIN + NUM_SPECIALS;
    }
}

VECTORS void load_shorts(const uint16_t *source, int n, int is_zigzag, int16_t *codes)
{
    if (!is_zigzag)
        memcpy(codes, source, (size_t)n * 2);
    for (int i = 0; is_zigzag && i < n; i++)
        codes[i] = (int16_t)((source[i] >> 1) ^ (uint16_t)-(source[i] & 1));
}

VECTORS void load_longs(const uint32_t *source, int n, int is_zigzag, int32_t *codes)
{
    for (int i = 0; i < n; i++)
        codes[i] = (int32_t)(is_zigzag ? (source[i] >> 1) ^ (0u - (source[i] & 1)) : source[i]);
}

/* Middle of each code's bin; tells whether some are special. */
VECTORS void dequantize_chunk(const int32_t *codes, int n, float half, int32_t limit, float *pixels,
                             int *has_special)
{
    int32_t special = 0;
    for (int i = 0; i < n; i++) {
        int32_t code = codes[i];
        uint32_t twice = (uint32_t)code * 2u - (uint32_t)((code > 0) - (code < 0));
        pixels[i] = (float)(int32_t)twice * half;
        special |= code < limit;
    }
    *has_special = special;
}

/* Codes of a plane, and what they decode to. */
static void quantize_plane(const float *plane, Py_ssize_t n, float step, int is_short,
                           int is_zigzag, char *out, float *decoded)
{
    int32_t codes[CHUNK];
    const int32_t lowest = is_short ? INT16_MIN : INT32_MIN;
    for (Py_ssize_t at = 0; at < n; at += CHUNK) {
        int count = (int)(n - at < CHUNK ? n - at : CHUNK), has_special = 0, is_low;
        if (step == 0.0f) {
            memcpy(codes, plane + at, (size_t)count * 4);
            memcpy(decoded + at, plane + at, (size_t)count * 4);
        } else {
            quantize_chunk(plane + at, count, step, codes, &has_special);
            dequantize_chunk(codes, count, 0.5f * step, INT32_MIN, decoded + at, &is_low);
            for (int i = 0; has_special && i < count; i++)
                if (is_special(bits_of(plane[at + i]))) {
                    codes[i] = lowest + (special_of(bits_of(plane[at + i])) & (NUM_SPECIALS - 1));
                    memcpy(decoded + at + i, plane + at + i, 4); /* keeps the bits of a NaN */
                }
        }
        store_codes(codes, count, is_short, is_zigzag, out + at * (is_short ? 2 : 4));
    }
}

/* Pixels or long codes of short ones, a chunk. */
static void decode_shorts(const uint16_t *source, int n, int is_zigzag, float step, int make,
                          char *made)
{
    int16_t codes[CHUNK];
    int has_special = 0;
    if (make == PIXELS)
        shorts_to_pixels(source, n, is_zigzag, 0.5f * step, (float *)made, &has_special);
    if (make == PIXELS && !has_special)
        return;
    load_shorts(source, n, is_zigzag, make == SHORTS ? (int16_t *)made : codes);
    for (int i = 0; make != SHORTS && i < n; i++) {
        int special = codes[i] - INT16_MIN;
        int32_t code = special < NUM_SPECIALS ? special + INT32_MIN : codes[i];
        if (make == LONGS)
            memcpy(made + 4 * i, &code, 4);
        else if (special < NUM_SPECIALS)
            memcpy(made + 4 * i, SPECIALS + special, 4);
    }
}

static void decode_longs(const uint32_t *source, int n, int is_zigzag, float step, int make,
                         char *made)
{
    int32_t codes[CHUNK];
    int has_special = 0;
    load_longs(source, n, is_zigzag, make == PIXELS && step != 0.0f ? codes : (int32_t *)made);
    if (make == LONGS || step == 0.0f)
        return;
    dequantize_chunk(codes, n, 0.5f * step, INT32_MIN + NUM_SPECIALS, (float *)made,
                          &has_special);
    for (int i = 0; has_special && i < n; i++)
        if (codes[i] < INT32_MIN + NUM_SPECIALS)
            memcpy(made + 4 * i, SPECIALS + (codes[i] - INT32_MIN), 4);
}

#if defined(__x86_64__)
/* Undoes Blosc's bitshuffle for a chunk of a block: bit k of all values stands together. Planes of
 * zeros, of which small codes have many, are skipped. Blosc's own way takes three times as long as
 * LZ4 itself; this one half as long. May read and write beyond the chunk, up to 32 values. */
__attribute__((target("avx512f,avx512bw"))) static void unshuffle_512(const char *block,
                                                                      int64_t block_values,
                                                                      int64_t at, int n,
                                                                      uint16_t *words)
{
    const char *planes[16];
    __m512i bits[16];
    int num_planes = 0;
    for (int k = 0; k < 16; k++) {
        const char *plane = block + k * (block_values / 8) + at / 8;
        uint64_t any = 0, word;
        for (int i = 0; i < n; i += 64) {
            memcpy(&word, plane + i / 8, 8);
            any |= word;
        }
        planes[num_planes] = plane;
        bits[num_planes] = _mm512_set1_epi16((int16_t)(1 << k));
        num_planes += any != 0;
    }
    for (int i = 0; i < n; i += 32) {
        __m512i sum = _mm512_setzero_si512();
        for (int k = 0; k < num_planes; k++) {
            uint32_t mask;
            memcpy(&mask, planes[k] + i / 8, 4);
            sum = _mm512_mask_add_epi16(sum, mask, sum, bits[k]);
        }
        _mm512_storeu_si512(words + i, sum);
    }
}

static int can_unshuffle;
#else
#define can_unshuffle 0
#define unshuffle_512(block, block_values, at, n, words) (void)0
#endif

/* Words of codes, in memory or as Blosc shuffled them. */
typedef struct {
    const char *bytes;
    int64_t num_values, block_values; /* of a shuffled block; 0 for plain words */
} words_t;

/* Makes pixels or codes of all planes of an array. */
static void decode_planes(words_t from, int64_t pixels, int is_short, int is_zigzag,
                          const float *steps, int make, char *out)
{
    char made[CHUNK * 4] __attribute__((aligned(LINE)));
    uint16_t words[CHUNK + 64];
    const int64_t size = make == SHORTS ? 2 : 4, word = is_short ? 2 : 4;
    const int64_t most = from.block_values ? from.block_values : from.num_values;
    int64_t count;
    for (int64_t at = 0; at < from.num_values; at += count) {
        int64_t first = at / most * most, end = first + most;
        end = end < from.num_values ? end : from.num_values;
        count = end - at < CHUNK ? end - at : CHUNK;
        const char *source = from.bytes + at * word;
        if (from.block_values && (end - first) % 8 == 0) {
            unshuffle_512(from.bytes + first * word, end - first, at - first, (int)count, words);
            source = (const char *)words;
        }
        for (int64_t i = 0, part; i < count; i += part) {
            int64_t plane = (at + i) / pixels, left = (plane + 1) * pixels - at - i;
            part = left < count - i ? left : count - i;
            if (is_short)
                decode_shorts((const uint16_t *)source + i, (int)part, is_zigzag, steps[plane],
                              make, made + i * size);
            else
                decode_longs((const uint32_t *)source + i, (int)part, is_zigzag, steps[plane],
                             make, made + i * size);
        }
        stream_copy(out + at * size, made, (size_t)(count * size));
    }
}

/* ---- records ---- */

typedef struct {
    int64_t source, nbytes, target, steps, kind;
} row_t;

typedef struct {
    int64_t planes, pixels, size, make, is_compressed;
} spec_t;

static uint32_t little32(const unsigned char *bytes)
{
    return bytes[0] | (uint32_t)bytes[1] << 8 | (uint32_t)bytes[2] << 16 | (uint32_t)bytes[3] << 24;
}

/* Blosc trusts these lengths, so they have to be those of the record. */
static int is_sound_header(const unsigned char *head, int64_t nbytes, int64_t expected)
{
    return nbytes >= 16 && nbytes <= INT32_MAX && head[0] == 2 && head[3] != 0 &&
           (head[2] >> 5 == 1 || head[2] >> 5 == 4) && /* LZ4 or zstd */
           little32(head + 4) == (uint64_t)expected && little32(head + 12) == (uint64_t)nbytes &&
           little32(head + 8) > 0 && little32(head + 8) <= (uint64_t)expected;
}

static int is_sound_step(float step)
{
    return step == 0.0f || (step >= 0x1p-100f && step <= 0x1p100f);
}

static int decode_row(const row_t *row, const spec_t *spec, char *scratch, int64_t scratch_nbytes,
                      decompress_t decompress)
{
    const char *source = (const char *)(uintptr_t)row->source;
    char *target = (char *)(uintptr_t)row->target;
    const float *steps = (const float *)(uintptr_t)row->steps;
    const int64_t size = row->kind == SHORT ? 2 : row->kind == LONG ? 4 : spec->size;
    const int64_t nbytes = spec->planes * spec->pixels * size;
    const int is_plain = row->kind == PLAIN;
    if (row->kind < PLAIN || row->kind > LONG || nbytes > INT32_MAX)
        return 0;
    if ((spec->make == BYTES && !is_plain) || (spec->make == SHORTS && row->kind != SHORT))
        return 0;
    for (int64_t p = 0; !is_plain && p < spec->planes; p++)
        if (!is_sound_step(steps[p]) || (row->kind == SHORT && steps[p] == 0.0f))
            return 0;
    words_t words = {source, spec->planes * spec->pixels, 0};
    if (!spec->is_compressed) {
        if (row->nbytes != nbytes)
            return 0;
    } else {
        /* Floats stand in the record as they are, also where others have codes. */
        char *room = is_plain ? target : scratch;
        const unsigned char *head = (const unsigned char *)source;
        if (!is_sound_header(head, row->nbytes, nbytes) ||
            (!is_plain && row->nbytes + nbytes + SLACK > scratch_nbytes))
            return 0;
        if (row->kind == SHORT && can_unshuffle && head[3] == 2 && head[8] % 2 == 0 &&
            (head[2] & (BITSHUFFLED | COPIED)) == BITSHUFFLED) {
            /* Of a copy that says it is not shuffled, Blosc gives the planes of bits. */
            char *copy = scratch + nbytes + SLACK;
            memcpy(copy, source, (size_t)row->nbytes);
            copy[2] &= ~BITSHUFFLED;
            words.block_values = little32(head + 8) / 2;
            source = copy;
        }
        if (decompress(source, room, (size_t)nbytes, 1) != nbytes)
            return 0;
        words.bytes = room;
    }
    if (!is_plain)
        decode_planes(words, spec->pixels, row->kind == SHORT, (int)spec->is_compressed, steps,
                      (int)spec->make, target);
    else if (words.bytes != target)
        stream_copy(target, source, (size_t)nbytes);
    return 1;
}

static PyObject *decode(PyObject *module, PyObject *args)
{
    Py_buffer table, specs, scratch;
    Py_ssize_t first, stop, i = 0;
    unsigned long long address;
    int is_sound = 0;
    (void)module;
    if (!PyArg_ParseTuple(args, "y*nny*w*K:decode", &table, &first, &stop, &specs, &scratch,
                          &address))
        return NULL;
    const spec_t *spec = specs.buf;
    Py_ssize_t num_specs = specs.len / (Py_ssize_t)sizeof(spec_t);
    if (((uintptr_t)table.buf | (uintptr_t)specs.buf) % 8 != 0)
        PyErr_SetString(PyExc_ValueError, "table and specs must be aligned to 8 bytes");
    else if (first < 0 || stop < first || stop > table.len / (Py_ssize_t)sizeof(row_t))
        PyErr_Format(PyExc_IndexError, "rows [%zd, %zd) are not in the table", first, stop);
    else
        is_sound = num_specs > 0;
    for (Py_ssize_t a = 0; is_sound && a < num_specs; a++)
        if (spec[a].planes < 0 || spec[a].pixels < 0 || spec[a].size < 1 ||
            spec[a].make < BYTES || spec[a].make > LONGS ||
            (spec[a].make != BYTES && spec[a].size != 4) ||
            (spec[a].is_compressed && address == 0) ||
            (spec[a].planes && spec[a].pixels > INT32_MAX / 4 / spec[a].planes / spec[a].size))
            is_sound = 0;
    if (is_sound) {
        Py_BEGIN_ALLOW_THREADS
        for (i = first; i < stop; i++)
            if (!decode_row((const row_t *)table.buf + i, spec + i % num_specs, scratch.buf,
                            scratch.len, (decompress_t)(uintptr_t)address))
                break;
        finish_streaming();
        Py_END_ALLOW_THREADS
    } else if (!PyErr_Occurred()) {
        PyErr_SetString(PyExc_ValueError, "specs describe no array");
    }
    PyBuffer_Release(&table);
    PyBuffer_Release(&specs);
    PyBuffer_Release(&scratch);
    return PyErr_Occurred() ? NULL : PyLong_FromSsize_t(i);
}

/* Planes of a buffer of pixels with one step each; -1 with an exception if they do not match. */
static Py_ssize_t plane_pixels(const Py_buffer *pixels, const Py_buffer *steps)
{
    Py_ssize_t num_planes = steps->len / 4;
    if (((uintptr_t)pixels->buf | (uintptr_t)steps->buf) % 4 != 0 || num_planes == 0 ||
        pixels->len % (4 * num_planes) != 0) {
        PyErr_Format(PyExc_ValueError, "%zd bytes of pixels do not have %zd planes", pixels->len,
                     num_planes);
        return -1;
    }
    return pixels->len / 4 / num_planes;
}

/* A step that the plane cannot have becomes 0; returns the narrowest kind for it. */
static int settle(const float *plane, Py_ssize_t n, float *step, int *is_blank)
{
    uint32_t largest;
    int has_special, is_known = 1;
    scan(plane, n, &largest, &has_special);
    for (Py_ssize_t i = 0; has_special && is_known && i < n; i++)
        is_known = !is_special(bits_of(plane[i])) || special_of(bits_of(plane[i])) >= 0;
    *is_blank = largest == 0 && is_known;
    if (*is_blank && !(*step > 0.0f))
        *step = 1.0f;
    float most = float_of((int32_t)largest);
    if (!is_known || !is_sound_step(*step) || *step == 0.0f || !(most / *step < MAX_CODE - 1)) {
        *step = 0.0f;
        return PLAIN;
    }
    return most / *step < MAX_SHORT_CODE - 1 ? SHORT : LONG;
}

static PyObject *measure(PyObject *module, PyObject *args)
{
    Py_buffer pixels, steps;
    float quantize;
    int kind = PLAIN;
    (void)module;
    if (!PyArg_ParseTuple(args, "y*w*f:measure", &pixels, &steps, &quantize))
        return NULL;
    Py_ssize_t n = plane_pixels(&pixels, &steps), num_planes = steps.len / 4;
    float *step = steps.buf;
    if (n >= 0) {
        Py_BEGIN_ALLOW_THREADS
        int num_short = 0, num_long = 0, num_blank = 0, is_blank;
        for (Py_ssize_t p = 0; p < num_planes; p++) {
            const float *plane = (const float *)pixels.buf + p * n;
            if (quantize > 0.0f)
                step[p] = noise_step(plane, n, quantize);
            int found = settle(plane, n, step + p, &is_blank);
            num_short += found == SHORT;
            num_long += found == LONG;
            num_blank += is_blank;
        }
        if (num_short == num_planes)
            kind = SHORT;
        else if (num_short + num_long > num_blank)
            kind = LONG;
        else
            memset(step, 0, (size_t)steps.len); /* nothing but blank planes would have codes */
        Py_END_ALLOW_THREADS
    }
    PyBuffer_Release(&pixels);
    PyBuffer_Release(&steps);
    return n < 0 ? NULL : PyLong_FromLong(kind);
}

static PyObject *quantize(PyObject *module, PyObject *args)
{
    Py_buffer pixels, steps, out, decoded;
    int is_short, is_zigzag;
    (void)module;
    if (!PyArg_ParseTuple(args, "y*y*w*w*pp:quantize", &pixels, &steps, &out, &decoded, &is_short,
                          &is_zigzag))
        return NULL;
    Py_ssize_t n = plane_pixels(&pixels, &steps), num_planes = steps.len / 4;
    const int size = is_short ? 2 : 4;
    if (n >= 0 && (out.len != num_planes * n * size || (uintptr_t)out.buf % 4 != 0)) {
        PyErr_Format(PyExc_ValueError, "codes take %zd bytes, got %zd", num_planes * n * size,
                     out.len);
        n = -1;
    }
    if (n >= 0 && (decoded.len != pixels.len || (uintptr_t)decoded.buf % 4 != 0)) {
        PyErr_Format(PyExc_ValueError, "decoded pixels take %zd bytes, got %zd", pixels.len,
                     decoded.len);
        n = -1;
    }
    if (n >= 0) {
        Py_BEGIN_ALLOW_THREADS
        for (Py_ssize_t p = 0; p < num_planes; p++)
            quantize_plane((const float *)pixels.buf + p * n, n, ((const float *)steps.buf)[p],
                           is_short, is_zigzag, (char *)out.buf + p * n * size,
                           (float *)decoded.buf + p * n);
        Py_END_ALLOW_THREADS
    }
    PyBuffer_Release(&pixels);
    PyBuffer_Release(&steps);
    PyBuffer_Release(&out);
    PyBuffer_Release(&decoded);
    if (n < 0)
        return NULL;
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"measure", measure, METH_VARARGS, "measure(pixels, steps, quantize) -> kind; fills steps"},
    {"quantize", quantize, METH_VARARGS, "quantize(pixels, steps, out, decoded, is_short, is_zigzag)"},
    {"decode", decode, METH_VARARGS,
     "decode(table, first, stop, specs, scratch, decompress) -> first row that is not sound"},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    .m_base = PyModuleDef_HEAD_INIT,
    .m_name = "msdata.core._coding",
    .m_doc = "Quantizes pixels and decodes stored records, without the GIL.",
    .m_size = 0,
    .m_methods = methods,
};

PyMODINIT_FUNC PyInit__coding(void)
{
    PyObject *module = PyModule_Create(&definition);
    stream_lines = choose_stream_lines();
#if defined(__x86_64__)
    can_unshuffle = __builtin_cpu_supports("avx512bw");
#endif
    if (module != NULL && PyModule_AddIntMacro(module, INTERFACE) < 0) {
        Py_DECREF(module);
        return NULL;
    }
    return module;
}
