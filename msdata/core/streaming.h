/* Stores that bypass the CPU's caches, for both C modules; see stream_fill.c. */
#ifndef MSDATA_STREAMING_H
#define MSDATA_STREAMING_H
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define LINE 64

/* Streams whole lines to an aligned destination; the module selects it for this CPU when it loads. */
typedef void (*stream_lines_t)(char *target, const char *source, size_t num_lines);

#if defined(__x86_64__)
__attribute__((target("avx512f"))) static void stream_lines_512(char *target, const char *source,
                                                                size_t num_lines)
{
    for (; num_lines > 0; num_lines--, target += LINE, source += LINE)
        _mm512_stream_si512((__m512i *)target, _mm512_loadu_si512(source));
}

static void stream_lines_128(char *target, const char *source, size_t num_lines)
{
    for (; num_lines > 0; num_lines--, target += LINE, source += LINE) {
        __m128i a = _mm_loadu_si128((const __m128i *)source);
        __m128i b = _mm_loadu_si128((const __m128i *)(source + 16));
        __m128i c = _mm_loadu_si128((const __m128i *)(source + 32));
        __m128i d = _mm_loadu_si128((const __m128i *)(source + 48));
        _mm_stream_si128((__m128i *)target, a);
        _mm_stream_si128((__m128i *)(target + 16), b);
        _mm_stream_si128((__m128i *)(target + 32), c);
        _mm_stream_si128((__m128i *)(target + 48), d);
    }
}

static stream_lines_t choose_stream_lines(void)
{
    return __builtin_cpu_supports("avx512f") ? stream_lines_512 : stream_lines_128;
}

static void finish_streaming(void)
{
    _mm_sfence(); /* makes the lines visible before the batch is reported as done */
}
#else
static void copy_lines(char *target, const char *source, size_t num_lines)
{
    memcpy(target, source, num_lines * LINE);
}

static stream_lines_t choose_stream_lines(void)
{
    return copy_lines;
}

static void finish_streaming(void)
{
}
#endif

static stream_lines_t stream_lines;

static void stream_copy(char *target, const char *source, size_t nbytes)
{
    if (nbytes == 0)
        return; /* an empty buffer may have no address */
    size_t head = -(uintptr_t)target & (LINE - 1);
    if (head > nbytes)
        head = nbytes;
    memcpy(target, source, head);
    size_t lines = (nbytes - head) / LINE;
    stream_lines(target + head, source + head, lines);
    size_t done = head + lines * LINE;
    memcpy(target + done, source + done, nbytes - done);
}

#endif
