/* The floor: what moving the bytes costs, with nothing around it.
 *
 *   native copy   BASE FINETUNED OUT THREADS [sync]   read both, write the base's bytes
 *   native negate BASE FINETUNED OUT THREADS SCALE [sync]   out = base - scale (ft - base)
 *   native read   BASE FINETUNED - THREADS                  read both
 *
 * Every shard of BASE (*.safetensors) is read beside the shard of the same name in FINETUNED, in
 * chunks that stay in cache, and written at its place in a preallocated file. `negate` computes
 * bf16 in float32 and rounds once, to nearest even. The header is copied; no name, shape, dtype,
 * NaN or checksum is looked at. With `sync` the output is flushed to disk before the end.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { CHUNK = 1 << 20, MOST = 1024 };

static struct shard { int base, tuned, out; uint64_t start, size; } shards[MOST];
static int count, arithmetic, writing, sync_at_end;
static float scale;
static _Atomic uint64_t next;
static uint64_t pieces[MOST + 1];

static void die(const char *what) { perror(what); exit(1); }

static void all(int reading, int fd, char *data, uint64_t size, uint64_t at) {
    while (size) {
        ssize_t done = reading ? pread(fd, data, size, at) : pwrite(fd, data, size, at);
        if (done <= 0) die(reading ? "pread" : "pwrite");
        data += done, at += done, size -= done;
    }
}

static void negate(const uint16_t *restrict base, const uint16_t *restrict tuned,
                   uint16_t *restrict out, uint64_t length) {
    for (uint64_t i = 0; i < length; i++) {
        uint32_t wide = (uint32_t)base[i] << 16, other = (uint32_t)tuned[i] << 16;
        float b, f;
        memcpy(&b, &wide, 4), memcpy(&f, &other, 4);
        float value = b - scale * (f - b);
        memcpy(&wide, &value, 4);
        out[i] = (wide + 0x7fff + ((wide >> 16) & 1)) >> 16;
    }
}

static void *work(void *unused) {
    char *memory = aligned_alloc(4096, 3 * CHUNK);
    char *base = memory, *tuned = memory + CHUNK, *out = memory + 2 * CHUNK;
    for (;;) {
        uint64_t piece = atomic_fetch_add(&next, 1);
        if (piece >= pieces[count]) return unused;
        int which = 0;
        while (pieces[which + 1] <= piece) which++;
        struct shard *s = &shards[which];
        uint64_t at = s->start + (piece - pieces[which]) * CHUNK;
        uint64_t size = s->size - at < CHUNK ? s->size - at : CHUNK;
        all(1, s->base, base, size, at);
        all(1, s->tuned, tuned, size, at);
        if (arithmetic) negate((void *)base, (void *)tuned, (void *)out, size / 2);
        if (writing) all(0, s->out, arithmetic ? out : base, size, at);
    }
}

int main(int argc, char **argv) {
    if (argc < 6) return fprintf(stderr, "see the text at the top of native.c\n"), 2;
    arithmetic = !strcmp(argv[1], "negate");
    writing = strcmp(argv[1], "read") != 0;
    if (arithmetic) scale = atof(argv[6]);
    sync_at_end = !strcmp(argv[argc - 1], "sync");
    int threads = atoi(argv[5]);
    char path[4096];
    if (writing) mkdir(argv[4], 0777);
    DIR *folder = opendir(argv[2]);
    if (!folder) die(argv[2]);
    for (struct dirent *each; (each = readdir(folder));) {
        char *ending = strrchr(each->d_name, '.');
        if (!ending || strcmp(ending, ".safetensors")) continue;
        if (count == MOST) return fprintf(stderr, "too many shards\n"), 1;
        struct shard *s = &shards[count];
        struct stat facts;
        uint64_t header;
        int *files[3] = {&s->base, &s->tuned, &s->out};
        for (int i = 0; i < 2 + writing; i++) {
            snprintf(path, sizeof path, "%s/%s", argv[2 + i], each->d_name);
            *files[i] = open(path, i < 2 ? O_RDONLY : O_RDWR | O_CREAT | O_TRUNC, 0666);
            if (*files[i] < 0) die(path);
        }
        fstat(s->base, &facts);
        s->size = facts.st_size;
        all(1, s->base, (char *)&header, 8, 0);
        s->start = 8 + header;
        if (writing) {
            if (posix_fallocate(s->out, 0, s->size)) die("posix_fallocate");
            char *raw = malloc(s->start);
            all(1, s->base, raw, s->start, 0);
            all(0, s->out, raw, s->start, 0);
            free(raw);
        }
        pieces[count + 1] = pieces[count] + (s->size - s->start + CHUNK - 1) / CHUNK;
        count++;
    }
    pthread_t ids[64];
    for (int i = 0; i < threads && i < 64; i++) pthread_create(&ids[i], 0, work, 0);
    for (int i = 0; i < threads && i < 64; i++) pthread_join(ids[i], 0);
    for (int i = 0; writing && i < count; i++)
        if ((sync_at_end && fsync(shards[i].out)) || close(shards[i].out)) die("close");
    return 0;
}
