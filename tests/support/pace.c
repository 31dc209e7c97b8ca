/* Linked into our runner by tests: every inference is LiteRT's own, and then waits until PACE_NS have passed since it
 * began. A loaded machine slows the inference, not the wait, so what the runner has to measure is known.
 *
 * For a runner built with -Wl,--wrap=dlsym -DPACE_NS=<nanoseconds>.
 */
#define _POSIX_C_SOURCE 200809L

#include <stddef.h>
#include <string.h>
#include <time.h>

typedef int (*run_function)(void *, size_t, size_t, void **, size_t, void **);

void *__real_dlsym(void *library, const char *symbol);
void *__wrap_dlsym(void *library, const char *symbol);

static run_function run;

static int paced(void *model, size_t signature, size_t inputs, void **in, size_t outputs, void **out) {
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    int status = run(model, signature, inputs, in, outputs, out);
    until.tv_nsec += PACE_NS;
    until.tv_sec += until.tv_nsec / 1000000000;
    until.tv_nsec %= 1000000000;
    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL) != 0) {
    }
    return status;
}

void *__wrap_dlsym(void *library, const char *symbol) {
    void *address = __real_dlsym(library, symbol);
    if (address == NULL || strcmp(symbol, "LiteRtRunCompiledModel") != 0) {
        return address;
    }
    run_function wrapper = paced;
    memcpy(&run, &address, sizeof run); /* ISO C has no cast from an object's to a function's pointer */
    memcpy(&address, &wrapper, sizeof address);
    return address;
}
