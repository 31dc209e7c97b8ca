/* shufflectl-runner: the latency of TensorFlow Lite files, measured through LiteRT's C API.
 *
 * Build, with any C11 compiler, on the device or for it; LiteRT's library is loaded when the program runs:
 *
 *     cc -O2 -o shufflectl-runner runner.c -ldl
 *
 * One process measures one file (absolute figures) or two (paired: each turn runs both once, in an order drawn by
 * lot, and before each timed run the same file runs untimed). Time is CLOCK_MONOTONIC_RAW in nanoseconds. Warm-up
 * runs are kept apart from samples, and go on until a fast and a slow moving average agree. Inputs are random numbers
 * from a seed, written once. Nothing else runs, allocates or prints between the clock's two readings.
 *
 * Usage: shufflectl-runner --model FILE [--model FILE] [options]; --help lists them; an unknown one is refused.
 *
 * Output: one JSON object on one line, on stdout or in --output's file, which appears whole or not at all:
 *
 *     {"schema": "shufflectl.runner/1",
 *      "version": "1.0", "library": "libLiteRt.so", "accelerator": "cpu", "threads": 4, "seed": 1, "settle": 1,
 *      "clock": "CLOCK_MONOTONIC_RAW", "cpus_allowed": "4-7",          how the kernel lets this process run, or null
 *      "environment_ns": 310000,                                       creating LiteRT's environment, once
 *      "measured_ns": 1200000000,                                      from the warm-up's begin to the last sample
 *      "cpu_ns": 2300000000,                                           CPU time of all threads meanwhile
 *      "waited_ns": 1000000,                                           their time ready to run, without a core; or null
 *      "peak_rss_bytes": 41000000,                                     of the process, after the last sample
 *      "process_threads": 4,                                           after the last sample, or null
 *      "models": [                                                     one for each --model, in that order
 *        {"path": "a.tflite", "bytes": 9184000,
 *         "init_ns": 12000000,                                         from opening the file to buffers ready to run
 *         "first_ns": 9000000,                                         the first inference
 *         "steady": true,                                              false: the warm-up ran into its limit
 *         "warmup_ns": [...],                                          until steady; the first inference included
 *         "samples_ns": [...],                                         in paired mode sample i of both is turn i
 *         "output_fnv1a": "cbf29ce484222325",                          of all output bytes after the last sample
 *         "delegation": {"accelerator": "xnnpack", "replaced": 150, "total": 151, "partitions": 1}}]}
 *
 * "delegation" comes from LiteRT's profiler, in one run after all samples: operators of the file that the CPU
 * accelerator's delegate took over, of how many, in how many partitions; null where the library cannot tell.
 *
 * Exit status, as shufflectl's own: 0 measured; 1 the runtime failed; 2 wrong arguments; 3 a file cannot be used, or
 * LiteRT crashed on it; 7 libLiteRt.so cannot be loaded. Every failure says why in one line on stderr that starts with
 * "error: ".
 * Memory is bounded: at most --max-iterations samples and as many warm-up runs are kept for each file.
 */
#define _GNU_SOURCE

#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <math.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "litert.h"

#define RUNNER_VERSION "1.0"
#define MAX_MODELS 2
#define MAX_TENSORS 64

#define CANARY UINT64_C(0xa5c3a5c3a5c3a5c3)

enum { EXIT_RUNTIME = 1, EXIT_USAGE = 2, EXIT_INPUT = 3, EXIT_UNAVAILABLE = 7 };

typedef struct {
    const char *models[MAX_MODELS];
    int model_count;
    const char *library;
    const char *output;
    int threads;
    uint64_t seed;
    long settle;
    long warmup_min_iterations;
    double warmup_min_seconds;
    double warmup_max_seconds;
    long min_iterations;
    double min_seconds;
    long max_iterations;
} options;

/* Nanoseconds of runs; grows up to a limit. */
typedef struct {
    int64_t *values;
    size_t count;
    size_t capacity;
} series;

/* Two exponential moving averages of the run time; see `settled`. */
typedef struct {
    double fast;
    double slow;
    long similar;
} steadiness;

typedef struct {
    const char *path;
    int64_t bytes;
    litert_handle model;
    litert_handle signature;
    litert_handle options;
    litert_handle compiled;
    litert_handle inputs[MAX_TENSORS];
    litert_handle outputs[MAX_TENSORS];
    size_t input_count;
    size_t output_count;
    int64_t init_ns;
    int64_t first_ns;
    bool steady;
    steadiness pace;
    series warmup;
    series samples;
    uint64_t fingerprint;
    bool delegation_known;
    size_t operators;
    size_t replaced;
    size_t partitions;
} subject;

/* What the whole process did. */
typedef struct {
    const char *library;
    int64_t environment_ns;
    int64_t measured_ns;
    int64_t cpu_ns;
    int64_t waited_ns; /* -1: not known */
    int64_t peak_rss_bytes;
    char threads[64]; /* empty: not known */
    char cpus[256];   /* likewise */
} conditions;

static litert_api api;
static litert_handle environment;
static const char *partial_output; /* removed when the program fails */

/* ---- failures, time, chance ---- */

#if defined(__GNUC__)
__attribute__((noreturn, format(printf, 2, 3)))
#endif
static void
fail(int status, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    fputs("error: ", stderr);
    vfprintf(stderr, format, arguments);
    fputc('\n', stderr);
    va_end(arguments);
    if (partial_output != NULL) {
        unlink(partial_output);
    }
    /* Not exit(): a runtime that has just failed need not survive its own destructors. */
    fflush(NULL);
    _exit(status);
}

/* LiteRT does not check all of a file: a damaged one can crash it, and that must not look like a mystery. */
static void crashed(int signal_number) {
    (void)signal_number;
    const char text[] = "\nerror: LiteRT crashed on a model file: it is damaged, or LiteRT has a defect\n";
    if (partial_output != NULL) {
        unlink(partial_output);
    }
    if (write(STDERR_FILENO, text, sizeof text - 1) < 0) {
        _exit(EXIT_RUNTIME);
    }
    _exit(EXIT_INPUT);
}

static void catch_crashes(void) {
    static const int SIGNALS[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT};
    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_handler = crashed;
    action.sa_flags = (int)SA_RESETHAND;
    for (size_t i = 0; i < sizeof SIGNALS / sizeof *SIGNALS; i++) {
        sigaction(SIGNALS[i], &action, NULL);
    }
}

static void check(int status, const char *what, const char *path) {
    if (status != LITERT_OK) {
        fail(EXIT_RUNTIME, "LiteRT failed to %s (status %d): %s", what, status, path);
    }
}

static int64_t now_ns(void) {
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC_RAW, &at);
    return (int64_t)at.tv_sec * 1000000000 + at.tv_nsec;
}

/* splitmix64 (Steele, Lea and Flood, 2014). */
static uint64_t draw(uint64_t *state) {
    uint64_t z = (*state += UINT64_C(0x9e3779b97f4a7c15));
    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return z ^ (z >> 31);
}

static void append(series *runs, int64_t ns) {
    if (runs->count == runs->capacity) {
        size_t capacity = runs->capacity == 0 ? 1024 : runs->capacity * 2;
        int64_t *values = realloc(runs->values, capacity * sizeof *values);
        if (values == NULL) {
            fail(EXIT_RUNTIME, "no memory for %zu samples", capacity);
        }
        runs->values = values;
        runs->capacity = capacity;
    }
    runs->values[runs->count++] = ns;
}

/* ---- arguments ---- */

static const char USAGE[] =
    "Usage: shufflectl-runner --model FILE [--model FILE] [options]\n"
    "Measure the latency of one .tflite file, or of two that take turns, with LiteRT. See the head of runner.c.\n"
    "\n"
    "  --model FILE                 a file to measure; twice for paired measurement\n"
    "  --library PATH               libLiteRt.so (default: beside this program, else where the loader finds it)\n"
    "  --output PATH                where to write the JSON (default: stdout)\n"
    "  --threads N                  threads of XNNPACK, 1 to 64 (default 1)\n"
    "  --seed N                     of the inputs and of the order (default 0)\n"
    "  --settle N                   untimed runs before each timed one, in paired mode (default 1)\n"
    "  --warmup-min-iterations N    (default 30)\n"
    "  --warmup-min-seconds S       (default 0.25)\n"
    "  --warmup-max-seconds S       then measure all the same, and say that it was not steady (default 10)\n"
    "  --min-iterations N           timed runs of each file, at least (default 50)\n"
    "  --min-seconds S              seconds of measuring, at least, settling runs included (default 0.5)\n"
    "  --max-iterations N           of timed runs, and of warm-up runs, of each file (default 100000)\n"
    "  --version                    print the version and stop\n"
    "  --help                       print this and stop\n";

static long whole(const char *flag, const char *text, long least, long most) {
    char *end = NULL;
    errno = 0;
    long value = strtol(text, &end, 10);
    if (errno != 0 || end == text || *end != '\0' || value < least || value > most) {
        fail(EXIT_USAGE, "%s wants a whole number from %ld to %ld, not '%s'", flag, least, most, text);
    }
    return value;
}

static double seconds(const char *flag, const char *text) {
    char *end = NULL;
    double value = strtod(text, &end);
    if (end == text || *end != '\0' || !isfinite(value) || value < 0 || value > 3600) {
        fail(EXIT_USAGE, "%s wants seconds from 0 to 3600, not '%s'", flag, text);
    }
    return value;
}

static uint64_t seed_of(const char *text) {
    char *end = NULL;
    errno = 0;
    uint64_t value = strtoull(text, &end, 10);
    if (errno != 0 || end == text || *end != '\0' || strchr(text, '-') != NULL) {
        fail(EXIT_USAGE, "--seed wants a whole number from 0 to 18446744073709551615, not '%s'", text);
    }
    return value;
}

static options parse(int argc, char **argv) {
    options wanted = {
        .threads = 1,
        .settle = 1,
        .warmup_min_iterations = 30,
        .warmup_min_seconds = 0.25,
        .warmup_max_seconds = 10,
        .min_iterations = 50,
        .min_seconds = 0.5,
        .max_iterations = 100000,
    };
    for (int i = 1; i < argc; i++) {
        const char *flag = argv[i];
        if (strcmp(flag, "--help") == 0) {
            fputs(USAGE, stdout);
            exit(0);
        }
        if (strcmp(flag, "--version") == 0) {
            puts("shufflectl-runner " RUNNER_VERSION);
            exit(0);
        }
        static const char *const KNOWN[] = {
            "--model", "--library", "--output", "--threads", "--seed", "--settle", "--warmup-min-iterations",
            "--warmup-min-seconds", "--warmup-max-seconds", "--min-iterations", "--min-seconds", "--max-iterations",
        };
        size_t which = 0;
        while (which < sizeof KNOWN / sizeof *KNOWN && strcmp(flag, KNOWN[which]) != 0) {
            which++;
        }
        if (which == sizeof KNOWN / sizeof *KNOWN) {
            fail(EXIT_USAGE, "there is no option '%s'; --help lists them all", flag);
        }
        if (++i == argc) {
            fail(EXIT_USAGE, "%s wants a value", flag);
        }
        const char *value = argv[i];
        switch (which) {
        case 0:
            if (wanted.model_count == MAX_MODELS) {
                fail(EXIT_USAGE, "--model can be given at most %d times", MAX_MODELS);
            }
            wanted.models[wanted.model_count++] = value;
            break;
        case 1: wanted.library = value; break;
        case 2: wanted.output = value; break;
        case 3: wanted.threads = (int)whole(flag, value, 1, 64); break;
        case 4: wanted.seed = seed_of(value); break;
        case 5: wanted.settle = whole(flag, value, 0, 1000); break;
        case 6: wanted.warmup_min_iterations = whole(flag, value, 0, 10000000); break;
        case 7: wanted.warmup_min_seconds = seconds(flag, value); break;
        case 8: wanted.warmup_max_seconds = seconds(flag, value); break;
        case 9: wanted.min_iterations = whole(flag, value, 1, 10000000); break;
        case 10: wanted.min_seconds = seconds(flag, value); break;
        default: wanted.max_iterations = whole(flag, value, 1, 10000000); break;
        }
    }
    if (wanted.model_count == 0) {
        fail(EXIT_USAGE, "--model is missing; --help shows the usage");
    }
    if (wanted.min_iterations > wanted.max_iterations || wanted.warmup_min_iterations > wanted.max_iterations) {
        fail(EXIT_USAGE, "--max-iterations %ld is less than the least number of runs", wanted.max_iterations);
    }
    if (wanted.warmup_min_seconds > wanted.warmup_max_seconds) {
        fail(EXIT_USAGE, "--warmup-max-seconds is less than --warmup-min-seconds");
    }
    return wanted;
}

/* ---- the library ---- */

static bool load_function(void *library, const char *symbol, void *member, size_t bytes) {
    void *address = dlsym(library, symbol);
    memcpy(member, &address, bytes); /* ISO C has no cast from an object's to a function's pointer */
    return address != NULL;
}

static const char *beside_program(char *path, size_t size) {
    ssize_t length = readlink("/proc/self/exe", path, size - 1);
    if (length <= 0) {
        return NULL;
    }
    path[length] = '\0';
    char *slash = strrchr(path, '/');
    const char name[] = "libLiteRt.so";
    if (slash == NULL || (size_t)(slash + 1 - path) + sizeof name > size) {
        return NULL;
    }
    memcpy(slash + 1, name, sizeof name);
    return access(path, F_OK) == 0 ? path : NULL;
}

static const char *load_library(const char *wanted) {
    static char found[PATH_MAX];
    if (wanted == NULL) {
        wanted = beside_program(found, sizeof found);
    }
    if (wanted == NULL) {
        wanted = "libLiteRt.so";
    }
    void *library = dlopen(wanted, RTLD_NOW | RTLD_LOCAL);
    if (library == NULL) {
        fail(EXIT_UNAVAILABLE, "LiteRT's library cannot be loaded: %s", dlerror());
    }
    /* Before 2.2 the same names took other arguments, and options were structures of its own. */
    if (dlsym(library, "LiteRtCreateCpuOptions") != NULL) {
        fail(EXIT_UNAVAILABLE, "%s is a LiteRT before 2.2, which works otherwise: take a newer one", wanted);
    }
    bool complete = true;
#define LOAD(member, symbol, result, parameters)                                                                       \
    if (!load_function(library, symbol, &api.member, sizeof api.member)) {                                             \
        fail(EXIT_UNAVAILABLE, "%s has no function %s: it is no LiteRT of 2.2 or later", wanted, symbol);              \
    }
    LITERT_FUNCTIONS(LOAD)
#undef LOAD
#define LOAD(member, symbol, result, parameters)                                                                       \
    complete = load_function(library, symbol, &api.member, sizeof api.member) && complete;
    LITERT_PROFILER_FUNCTIONS(LOAD)
#undef LOAD
    api.has_profiler = complete;
    return wanted;
}

/* ---- one file ---- */

static litert_handle load_model(const char *path) {
    litert_handle model = NULL;
    int status = api.create_model_from_file(environment, path, &model);
    if (status != LITERT_OK || model == NULL) {
        fail(EXIT_INPUT, "LiteRT cannot read %s (status %d): it is damaged, or no .tflite file", path, status);
    }
    return model;
}

static void add_option(litert_handle to, const char *identifier, const char *toml) {
    char *payload = strdup(toml);
    litert_handle opaque = NULL;
    if (payload == NULL) {
        fail(EXIT_RUNTIME, "no memory");
    }
    check(api.create_opaque_options(identifier, payload, free, &opaque), "create its options", identifier);
    check(api.add_opaque_options(to, opaque), "take its options", identifier);
}

static litert_handle cpu_options(int threads) {
    char toml[32];
    litert_handle created = NULL;
    check(api.create_options(&created), "create its options", "cpu");
    check(api.set_accelerators(created, LITERT_ACCELERATOR_CPU), "choose the accelerator", "cpu");
    snprintf(toml, sizeof toml, "num_threads = %d\n", threads);
    add_option(created, "xnnpack", toml);
    return created;
}

/* An IEEE half in [0, 1): k / 1024 for a random k, which is exact. */
static uint16_t half_of(uint64_t bits) {
    uint32_t k = (uint32_t)(bits >> 54); /* 0 ... 1023 */
    if (k == 0) {
        return 0;
    }
    uint32_t exponent = 15;
    while ((k & 0x400U) == 0) {
        k <<= 1;
        exponent--;
    }
    return (uint16_t)((exponent << 10) | (k & 0x3ffU));
}

/* Nearly standard normal: the sum of twelve uniform numbers, less its mean. */
static double draw_normal(uint64_t *state) {
    double sum = -6;
    for (int i = 0; i < 12; i++) {
        sum += (double)(draw(state) >> 11) / 9007199254740992.0;
    }
    return sum;
}

/* Floats nearly standard normal (half precision: uniform in [0, 1)), 8-bit and 16-bit integers over their whole range,
 * wider ones and booleans 0 or 1, which are safe as indices too. */
static void fill(void *memory, size_t bytes, int type, uint64_t *state, const char *path) {
    unsigned char *at = memory;
    size_t width = 0;
    switch (type) {
    case LITERT_INT8: case LITERT_UINT8: case LITERT_BOOL: width = 1; break;
    case LITERT_FLOAT16: case LITERT_INT16: case LITERT_UINT16: width = 2; break;
    case LITERT_FLOAT32: case LITERT_INT32: case LITERT_UINT32: width = 4; break;
    case LITERT_FLOAT64: case LITERT_INT64: case LITERT_UINT64: width = 8; break;
    default: fail(EXIT_INPUT, "%s has an input of element type %d, for which there are no random values", path, type);
    }
    for (size_t i = 0; i + width <= bytes; i += width) {
        uint64_t bits = 0;
        switch (type) {
        case LITERT_FLOAT32: {
            float value = (float)draw_normal(state);
            memcpy(&bits, &value, sizeof value);
            break;
        }
        case LITERT_FLOAT64: {
            double value = draw_normal(state);
            memcpy(&bits, &value, sizeof value);
            break;
        }
        case LITERT_FLOAT16: {
            uint16_t value = half_of(draw(state));
            memcpy(&bits, &value, sizeof value);
            break;
        }
        case LITERT_INT8: case LITERT_UINT8: case LITERT_INT16: case LITERT_UINT16:
            bits = draw(state);
            break;
        default: {
            unsigned char value = (unsigned char)(draw(state) & 1U);
            memcpy(&bits, &value, 1); /* little-endian, as every LiteRT machine is */
        }
        }
        memcpy(at + i, &bits, width);
    }
}

static litert_handle make_buffer(const subject *of, litert_handle tensor, litert_handle requirements,
                                 litert_tensor_type *type) {
    litert_handle buffer = NULL;
    memset(type, 0, sizeof *type);
    if (api.get_tensor_type(tensor, type) != LITERT_OK) {
        fail(EXIT_INPUT, "%s has an input or output without a fixed rank", of->path);
    }
    if (api.create_buffer(environment, type, requirements, &buffer) != LITERT_OK) {
        fail(EXIT_INPUT, "LiteRT makes no buffer for an input or output of %s: its shape may be dynamic", of->path);
    }
    return buffer;
}

static void make_inputs(subject *of, uint64_t seed) {
    uint64_t state = seed;
    for (size_t i = 0; i < of->input_count; i++) {
        litert_handle tensor = NULL;
        litert_handle requirements = NULL;
        litert_tensor_type type;
        void *memory = NULL;
        size_t bytes = 0;
        check(api.get_input(of->signature, i, &tensor), "name an input", of->path);
        check(api.get_input_requirements(of->compiled, 0, i, &requirements), "describe an input", of->path);
        of->inputs[i] = make_buffer(of, tensor, requirements, &type);
        check(api.get_buffer_size(of->inputs[i], &bytes), "size an input", of->path);
        check(api.lock_buffer(of->inputs[i], &memory, LITERT_LOCK_WRITE), "open an input", of->path);
        fill(memory, bytes, type.element_type, &state, of->path);
        check(api.unlock_buffer(of->inputs[i]), "close an input", of->path);
    }
}

static void make_outputs(subject *of) {
    for (size_t i = 0; i < of->output_count; i++) {
        litert_handle tensor = NULL;
        litert_handle requirements = NULL;
        litert_tensor_type type;
        check(api.get_output(of->signature, i, &tensor), "name an output", of->path);
        check(api.get_output_requirements(of->compiled, 0, i, &requirements), "describe an output", of->path);
        of->outputs[i] = make_buffer(of, tensor, requirements, &type);
    }
}

static void compile(subject *of, int threads, bool profiled, uint64_t seed) {
    size_t signatures = 0;
    of->model = load_model(of->path);
    check(api.get_signature_count(of->model, &signatures), "count the signatures", of->path);
    if (signatures == 0) {
        fail(EXIT_INPUT, "%s has no signature to run", of->path);
    }
    check(api.get_signature(of->model, 0, &of->signature), "open the first signature", of->path);
    check(api.get_input_count(of->signature, &of->input_count), "count the inputs", of->path);
    check(api.get_output_count(of->signature, &of->output_count), "count the outputs", of->path);
    if (of->input_count > MAX_TENSORS || of->output_count > MAX_TENSORS) {
        fail(EXIT_INPUT, "%s has more than %d inputs or outputs", of->path, MAX_TENSORS);
    }
    of->options = cpu_options(threads);
    if (profiled) {
        add_option(of->options, "runtime_options_string", "enable_profiling = true\n");
    }
    int status = api.create_compiled_model(environment, of->model, of->options, &of->compiled);
    if (status != LITERT_OK || of->compiled == NULL) {
        fail(EXIT_INPUT, "LiteRT cannot prepare %s (status %d): see its messages above", of->path, status);
    }
    make_inputs(of, seed);
    make_outputs(of);
}

static void release(subject *of) {
    for (size_t i = 0; i < of->input_count; i++) {
        api.destroy_buffer(of->inputs[i]);
    }
    for (size_t i = 0; i < of->output_count; i++) {
        api.destroy_buffer(of->outputs[i]);
    }
    api.destroy_compiled_model(of->compiled);
    api.destroy_options(of->options);
    api.destroy_model(of->model);
}

static int64_t timed_run(subject *of) {
    int64_t begin = now_ns();
    int status = api.run(of->compiled, 0, of->input_count, of->inputs, of->output_count, of->outputs);
    int64_t end = now_ns();
    check(status, "run the model", of->path);
    return end - begin;
}

/* ---- warm-up and measurement ---- */

/* Note one more run: two moving averages, in which it weighs 1/10 and 1/50. */
static void note_pace(steadiness *pace, int64_t ns) {
    double value = (double)ns;
    if (pace->slow == 0) {
        pace->fast = pace->slow = value;
    }
    pace->fast += 0.1 * (value - pace->fast);
    pace->slow += 0.02 * (value - pace->slow);
    double apart = pace->fast - pace->slow;
    pace->similar = (apart < 0 ? -apart : apart) <= 0.04 * pace->slow ? pace->similar + 1 : 0;
}

/* Whether the run time is steady, by androidx.benchmark's rule: the averages have agreed within 4 % for 40 runs. */
static bool settled(const subject *of, const options *wanted) {
    return of->pace.similar >= 40 && (long)of->warmup.count > wanted->warmup_min_iterations;
}

static void untimed(subject *of, const options *wanted) {
    for (long i = 0; wanted->model_count > 1 && i < wanted->settle; i++) {
        (void)timed_run(of);
    }
}

/* One turn: every file once, in an order drawn by lot. */
static void turn(subject *subjects, const options *wanted, uint64_t *state, bool warming) {
    int first = wanted->model_count > 1 ? (int)(draw(state) >> 63) : 0;
    for (int i = 0; i < wanted->model_count; i++) {
        subject *of = &subjects[(first + i) % wanted->model_count];
        untimed(of, wanted);
        int64_t ns = timed_run(of);
        append(warming ? &of->warmup : &of->samples, ns);
        if (warming) {
            note_pace(&of->pace, ns);
        }
    }
}

static void warm_up(subject *subjects, const options *wanted, uint64_t *state) {
    int64_t begin = now_ns();
    for (;;) {
        double elapsed = (double)(now_ns() - begin) / 1e9;
        bool steady = elapsed >= wanted->warmup_min_seconds;
        for (int i = 0; i < wanted->model_count; i++) {
            subjects[i].steady = settled(&subjects[i], wanted);
            steady = steady && subjects[i].steady;
        }
        if (steady || elapsed >= wanted->warmup_max_seconds ||
            (long)subjects[0].warmup.count >= wanted->max_iterations) {
            return;
        }
        turn(subjects, wanted, state, true);
    }
}

static void measure(subject *subjects, const options *wanted, uint64_t *state) {
    int64_t begin = now_ns();
    for (;;) {
        long count = (long)subjects[0].samples.count;
        bool enough = count >= wanted->min_iterations && (double)(now_ns() - begin) >= wanted->min_seconds * 1e9;
        if (enough || count >= wanted->max_iterations) {
            return;
        }
        turn(subjects, wanted, state, false);
    }
}

/* ---- what else is recorded ---- */

/* FNV-1a (64 bits) of all output bytes: two runs with one seed have to agree. */
static uint64_t fingerprint(const subject *of) {
    uint64_t hash = UINT64_C(0xcbf29ce484222325);
    for (size_t i = 0; i < of->output_count; i++) {
        void *memory = NULL;
        size_t bytes = 0;
        check(api.get_buffer_size(of->outputs[i], &bytes), "size an output", of->path);
        check(api.lock_buffer(of->outputs[i], &memory, LITERT_LOCK_READ), "open an output", of->path);
        for (size_t j = 0; j < bytes; j++) {
            hash = (hash ^ ((const unsigned char *)memory)[j]) * UINT64_C(0x100000001b3);
        }
        check(api.unlock_buffer(of->outputs[i]), "close an output", of->path);
    }
    return hash;
}

/* A line of /proc/self/status, without its name; false where there is none. */
static bool process_status(const char *name, char *value, size_t size) {
    FILE *file = fopen("/proc/self/status", "r");
    char line[512];
    bool found = false;
    if (file == NULL) {
        return false;
    }
    size_t length = strlen(name);
    while (!found && fgets(line, sizeof line, file) != NULL) {
        if (strncmp(line, name, length) == 0 && line[length] == ':') {
            const char *text = line + length + 1;
            text += strspn(text, " \t");
            snprintf(value, size, "%.*s", (int)strcspn(text, "\n"), text);
            found = true;
        }
    }
    fclose(file);
    return found;
}

/* Nanoseconds that this process's threads were ready to run and had no core; -1 where the kernel does not tell. */
static int64_t waited_ns(void) {
    DIR *tasks = opendir("/proc/self/task");
    struct dirent *entry;
    int64_t total = 0;
    if (tasks == NULL) {
        return -1;
    }
    while (total >= 0 && (entry = readdir(tasks)) != NULL) {
        char path[320];
        uint64_t ran = 0;
        uint64_t waited = 0;
        if (entry->d_name[0] == '.') {
            continue;
        }
        snprintf(path, sizeof path, "/proc/self/task/%s/schedstat", entry->d_name);
        FILE *file = fopen(path, "r");
        bool told = file != NULL && fscanf(file, "%" SCNu64 " %" SCNu64, &ran, &waited) == 2;
        total = told ? total + (int64_t)waited : -1;
        if (file != NULL) {
            fclose(file);
        }
    }
    closedir(tasks);
    return total;
}

static int64_t cpu_ns(void) {
    struct timespec at;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &at);
    return (int64_t)at.tv_sec * 1000000000 + at.tv_nsec;
}

static int64_t peak_rss_bytes(void) {
    /* Not getrusage first: on Linux its figure includes the program that this process was before exec. */
    char text[64];
    struct rusage usage;
    if (process_status("VmHWM", text, sizeof text)) {
        return (int64_t)strtoll(text, NULL, 10) * 1024;
    }
    getrusage(RUSAGE_SELF, &usage);
    return (int64_t)usage.ru_maxrss * 1024;
}

/* The words of one event in `words`, which held CANARY everywhere before the library wrote `count` events into it;
 * 0 if that is no layout we know. */
static size_t event_words(const uint64_t *words, size_t count, size_t room) {
    size_t written = room;
    while (written > 0 && words[written - 1] == CANARY) {
        written--;
    }
    for (size_t i = 0; i < sizeof LITERT_EVENT_WORDS / sizeof *LITERT_EVENT_WORDS; i++) {
        if (written == count * LITERT_EVENT_WORDS[i]) {
            return LITERT_EVENT_WORDS[i];
        }
    }
    return 0;
}

/* Count what the profiler saw in one run: the operators that LiteRT ran itself, and the partitions that XNNPACK ran.
 * XNNPACK reports its own operators in place of the node that holds them, numbered from 0 in each partition. */
static bool count_nodes(litert_handle profiler, size_t *own, size_t *partitions) {
    int reported = 0;
    if (api.get_event_count(profiler, &reported) != LITERT_OK || reported <= 0 || reported > 1000000) {
        return false;
    }
    size_t count = (size_t)reported;
    size_t room = count * LITERT_EVENT_MOST_WORDS;
    uint64_t *words = malloc(room * sizeof *words);
    size_t stride = 0;
    if (words == NULL) {
        return false;
    }
    for (size_t i = 0; i < room; i++) {
        words[i] = CANARY;
    }
    if (api.get_events(profiler, reported, words) == LITERT_OK) {
        stride = event_words(words, count, room);
    }
    for (size_t i = 0; stride > 0 && i < count; i++) {
        const uint64_t *event = words + i * stride;
        uint32_t type = (uint32_t)event[1];
        *own += type == LITERT_EVENT_OPERATOR;
        *partitions += type == LITERT_EVENT_DELEGATED && event[stride - 3] == 0;
    }
    free(words);
    return stride > 0;
}

/* Compile the file again with the profiler on, run it once, and count whose nodes ran. */
static void find_delegation(subject *of, int threads, uint64_t seed) {
    subject probe = {.path = of->path};
    litert_handle profiler = NULL;
    litert_handle subgraph = NULL;
    size_t own = 0;
    if (!api.has_profiler) {
        return;
    }
    compile(&probe, threads, true, seed);
    if (api.get_signature_subgraph(probe.signature, &subgraph) == LITERT_OK &&
        api.get_operator_count(subgraph, &of->operators) == LITERT_OK &&
        api.get_profiler(probe.compiled, &profiler) == LITERT_OK && profiler != NULL &&
        api.start_profiler(profiler) == LITERT_OK) {
        (void)timed_run(&probe);
        of->delegation_known = api.stop_profiler(profiler) == LITERT_OK &&
                               count_nodes(profiler, &own, &of->partitions) && own <= of->operators &&
                               own + of->partitions > 0;
        of->replaced = of->operators - own;
    }
    release(&probe);
}

/* ---- output ---- */

static void write_text(FILE *to, const char *text) {
    fputc('"', to);
    for (const unsigned char *at = (const unsigned char *)text; *at != '\0'; at++) {
        if (*at == '"' || *at == '\\') {
            fprintf(to, "\\%c", *at);
        } else if (*at < 0x20 || *at >= 0x7f) {
            fprintf(to, "\\u%04x", *at); /* bytes of no known encoding: read as Latin-1 */
        } else {
            fputc(*at, to);
        }
    }
    fputc('"', to);
}

static void write_series(FILE *to, const char *name, const series *runs) {
    fprintf(to, ", \"%s\": [", name);
    for (size_t i = 0; i < runs->count; i++) {
        fprintf(to, "%s%" PRId64, i == 0 ? "" : ", ", runs->values[i]);
    }
    fputc(']', to);
}

static void write_subject(FILE *to, const subject *of) {
    fputs("{\"path\": ", to);
    write_text(to, of->path);
    fprintf(to, ", \"bytes\": %" PRId64 ", \"init_ns\": %" PRId64 ", \"first_ns\": %" PRId64 ", \"steady\": %s",
            of->bytes, of->init_ns, of->first_ns, of->steady ? "true" : "false");
    write_series(to, "warmup_ns", &of->warmup);
    write_series(to, "samples_ns", &of->samples);
    fprintf(to, ", \"output_fnv1a\": \"%016" PRIx64 "\", \"delegation\": ", of->fingerprint);
    if (of->delegation_known) {
        fprintf(to, "{\"accelerator\": \"xnnpack\", \"replaced\": %zu, \"total\": %zu, \"partitions\": %zu}}",
                of->replaced, of->operators, of->partitions);
    } else {
        fputs("null}", to);
    }
}

static void write_report(FILE *to, const subject *subjects, const options *wanted, const conditions *met) {
    fputs("{\"schema\": \"shufflectl.runner/1\", \"version\": \"" RUNNER_VERSION "\", \"library\": ", to);
    write_text(to, met->library);
    fprintf(to, ", \"accelerator\": \"cpu\", \"threads\": %d, \"seed\": %" PRIu64 ", \"settle\": %ld", wanted->threads,
            wanted->seed, wanted->settle);
    fputs(", \"clock\": \"CLOCK_MONOTONIC_RAW\", \"cpus_allowed\": ", to);
    if (met->cpus[0] != '\0') {
        write_text(to, met->cpus);
    } else {
        fputs("null", to);
    }
    fprintf(to, ", \"environment_ns\": %" PRId64 ", \"measured_ns\": %" PRId64 ", \"cpu_ns\": %" PRId64,
            met->environment_ns, met->measured_ns, met->cpu_ns);
    fputs(", \"waited_ns\": ", to);
    if (met->waited_ns >= 0) {
        fprintf(to, "%" PRId64, met->waited_ns);
    } else {
        fputs("null", to);
    }
    fprintf(to, ", \"peak_rss_bytes\": %" PRId64 ", \"process_threads\": %s", met->peak_rss_bytes,
            met->threads[0] == '\0' ? "null" : met->threads);
    fputs(", \"models\": [", to);
    for (int i = 0; i < wanted->model_count; i++) {
        fputs(i == 0 ? "" : ", ", to);
        write_subject(to, &subjects[i]);
    }
    fputs("]}\n", to);
}

static FILE *open_output(const char *path) {
    static char partial[PATH_MAX];
    struct stat there;
    if (path == NULL) {
        return stdout;
    }
    if (stat(path, &there) == 0 && !S_ISREG(there.st_mode)) {
        fail(EXIT_USAGE, "%s is no plain file, and would be replaced by one", path);
    }
    if (snprintf(partial, sizeof partial, "%s.partial", path) >= (int)sizeof partial) {
        fail(EXIT_USAGE, "--output's path is too long");
    }
    FILE *file = fopen(partial, "w");
    if (file == NULL) {
        fail(EXIT_USAGE, "%s cannot be written: %s", path, strerror(errno));
    }
    partial_output = partial;
    return file;
}

static void close_output(FILE *file, const char *path) {
    bool failed = ferror(file) != 0;
    failed = (file == stdout ? fflush(file) : fclose(file)) != 0 || failed;
    if (failed || (path != NULL && rename(partial_output, path) != 0)) {
        fail(EXIT_RUNTIME, "the result cannot be written: %s", strerror(errno));
    }
    partial_output = NULL;
}

int main(int argc, char **argv) {
    options wanted = parse(argc, argv);
    subject subjects[MAX_MODELS] = {{.path = wanted.models[0]}, {.path = wanted.models[1]}};
    for (int i = 0; i < wanted.model_count; i++) {
        struct stat found;
        if (stat(subjects[i].path, &found) != 0) {
            fail(EXIT_INPUT, "%s cannot be read: %s", subjects[i].path, strerror(errno));
        }
        if (!S_ISREG(found.st_mode) || found.st_size < 8) {
            fail(EXIT_INPUT, "%s is no .tflite file", subjects[i].path);
        }
        subjects[i].bytes = (int64_t)found.st_size;
    }
    FILE *report = open_output(wanted.output); /* before the work: a path that cannot be written shows at once */
    conditions met = {.library = load_library(wanted.library)};
    catch_crashes();

    int64_t begin = now_ns();
    check(api.create_environment(0, NULL, &environment), "start", met.library);
    met.environment_ns = now_ns() - begin;

    uint64_t order = wanted.seed ^ UINT64_C(0x6f72646572); /* apart from the inputs' numbers */
    int first = wanted.model_count > 1 ? (int)(draw(&order) >> 63) : 0;
    for (int i = 0; i < wanted.model_count; i++) {
        subject *of = &subjects[(first + i) % wanted.model_count];
        begin = now_ns();
        compile(of, wanted.threads, false, wanted.seed);
        of->init_ns = now_ns() - begin;
        of->first_ns = timed_run(of);
        append(&of->warmup, of->first_ns);
    }

    int64_t waited_before = waited_ns();
    int64_t cpu_before = cpu_ns();
    begin = now_ns();
    warm_up(subjects, &wanted, &order);
    measure(subjects, &wanted, &order);
    met.measured_ns = now_ns() - begin;
    met.cpu_ns = cpu_ns() - cpu_before;
    int64_t waited_after = waited_ns();
    met.waited_ns = waited_before < 0 || waited_after < waited_before ? -1 : waited_after - waited_before;
    met.peak_rss_bytes = peak_rss_bytes();
    (void)process_status("Threads", met.threads, sizeof met.threads);
    (void)process_status("Cpus_allowed_list", met.cpus, sizeof met.cpus);

    for (int i = 0; i < wanted.model_count; i++) {
        subjects[i].fingerprint = fingerprint(&subjects[i]);
        release(&subjects[i]);
    }
    for (int i = 0; i < wanted.model_count; i++) {
        find_delegation(&subjects[i], wanted.threads, wanted.seed);
    }
    write_report(report, subjects, &wanted, &met);
    close_output(report, wanted.output);
    api.destroy_environment(environment);
    for (int i = 0; i < wanted.model_count; i++) {
        free(subjects[i].warmup.values);
        free(subjects[i].samples.values);
    }
    return 0;
}
