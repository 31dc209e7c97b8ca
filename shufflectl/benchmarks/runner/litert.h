/* The part of LiteRT's C API that the runner calls, declared by ourselves and loaded from libLiteRt.so with dlsym.
 *
 * Written from the public API (LiteRT's litert/c headers, versions 2.2 and 2.3); no LiteRT header is needed to build.
 * Handles are opaque pointers. Where a structure of the library passes through, only the words that every version
 * lays out alike are read, and the memory is larger than any version needs.
 */
#ifndef SHUFFLECTL_LITERT_H
#define SHUFFLECTL_LITERT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef void *litert_handle;

enum {
    LITERT_OK = 0,
};

enum { LITERT_ACCELERATOR_CPU = 1 };

enum {
    LITERT_LOCK_READ = 0,
    LITERT_LOCK_WRITE = 1,
};

/* LiteRtElementType: the numbers of TensorFlow Lite's TfLiteType. */
enum {
    LITERT_FLOAT32 = 1,
    LITERT_INT32 = 2,
    LITERT_UINT8 = 3,
    LITERT_INT64 = 4,
    LITERT_BOOL = 6,
    LITERT_INT16 = 7,
    LITERT_INT8 = 9,
    LITERT_FLOAT16 = 10,
    LITERT_FLOAT64 = 11,
    LITERT_UINT64 = 13,
    LITERT_UINT32 = 16,
    LITERT_UINT16 = 17,
};

/* LiteRtRankedTensorType: 72 bytes and more. The element type comes first; the layout behind it differs by version
 * and is passed back as it came. */
typedef struct {
    int32_t element_type;
    int32_t padding;
    uint64_t layout[15];
} litert_tensor_type;

/* ProfiledEventData of LiteRT's profiler, in words of 8 bytes: the tag's address, the type in the low half of a word,
 * start, duration, memory before and after (2 words each once, 3 in LiteRT 2.3), two words about the node, source. */
static const size_t LITERT_EVENT_WORDS[] = {11, 13};
enum { LITERT_EVENT_MOST_WORDS = 24 };
enum {
    LITERT_EVENT_OPERATOR = 2,  /* OPERATOR_INVOKE_EVENT */
    LITERT_EVENT_DELEGATED = 8, /* DELEGATE_PROFILED_OPERATOR_INVOKE_EVENT */
};

/* Every function that the runner calls: X(name of the member, symbol, result, parameters). */
#define LITERT_FUNCTIONS(X)                                                                                            \
    X(create_environment, "LiteRtCreateEnvironment", int,                                                              \
      (int option_count, const void *options, litert_handle *environment))                                            \
    X(destroy_environment, "LiteRtDestroyEnvironment", void, (litert_handle environment))                              \
    X(create_model_from_file, "LiteRtCreateModelFromFile", int,                                                        \
      (litert_handle environment, const char *path, litert_handle *model))                                             \
    X(destroy_model, "LiteRtDestroyModel", void, (litert_handle model))                                                \
    X(get_signature_count, "LiteRtGetNumModelSignatures", int, (litert_handle model, size_t *count))                   \
    X(get_signature, "LiteRtGetModelSignature", int, (litert_handle model, size_t index, litert_handle *signature))    \
    X(get_signature_subgraph, "LiteRtGetSignatureSubgraph", int,                                                       \
      (litert_handle signature, litert_handle *subgraph))                                                              \
    X(get_input_count, "LiteRtGetNumSignatureInputs", int, (litert_handle signature, size_t *count))                   \
    X(get_input, "LiteRtGetSignatureInputTensorByIndex", int,                                                          \
      (litert_handle signature, size_t index, litert_handle *tensor))                                                  \
    X(get_output_count, "LiteRtGetNumSignatureOutputs", int, (litert_handle signature, size_t *count))                 \
    X(get_output, "LiteRtGetSignatureOutputTensorByIndex", int,                                                        \
      (litert_handle signature, size_t index, litert_handle *tensor))                                                  \
    X(get_operator_count, "LiteRtGetNumSubgraphOps", int, (litert_handle subgraph, size_t *count))                     \
    X(get_tensor_type, "LiteRtGetRankedTensorType", int, (litert_handle tensor, litert_tensor_type *type))             \
    X(create_options, "LiteRtCreateOptions", int, (litert_handle *options))                                            \
    X(destroy_options, "LiteRtDestroyOptions", void, (litert_handle options))                                          \
    X(set_accelerators, "LiteRtSetOptionsHardwareAccelerators", int, (litert_handle options, int accelerators))        \
    X(create_opaque_options, "LiteRtCreateOpaqueOptions", int,                                                         \
      (const char *identifier, void *payload, void (*release)(void *), litert_handle *options))                        \
    X(add_opaque_options, "LiteRtAddOpaqueOptions", int, (litert_handle options, litert_handle opaque))                \
    X(create_compiled_model, "LiteRtCreateCompiledModel", int,                                                         \
      (litert_handle environment, litert_handle model, litert_handle options, litert_handle *compiled))                \
    X(destroy_compiled_model, "LiteRtDestroyCompiledModel", void, (litert_handle compiled))                            \
    X(get_input_requirements, "LiteRtGetCompiledModelInputBufferRequirements", int,                                    \
      (litert_handle compiled, size_t signature, size_t index, litert_handle *requirements))                           \
    X(get_output_requirements, "LiteRtGetCompiledModelOutputBufferRequirements", int,                                  \
      (litert_handle compiled, size_t signature, size_t index, litert_handle *requirements))                           \
    X(create_buffer, "LiteRtCreateManagedTensorBufferFromRequirements", int,                                           \
      (litert_handle environment, const litert_tensor_type *type, litert_handle requirements, litert_handle *buffer))  \
    X(destroy_buffer, "LiteRtDestroyTensorBuffer", void, (litert_handle buffer))                                       \
    X(get_buffer_size, "LiteRtGetTensorBufferPackedSize", int, (litert_handle buffer, size_t *bytes))                  \
    X(lock_buffer, "LiteRtLockTensorBuffer", int, (litert_handle buffer, void **address, int mode))                    \
    X(unlock_buffer, "LiteRtUnlockTensorBuffer", int, (litert_handle buffer))                                          \
    X(run, "LiteRtRunCompiledModel", int,                                                                              \
      (litert_handle compiled, size_t signature, size_t input_count, litert_handle *inputs, size_t output_count,       \
       litert_handle *outputs))

/* Used for the report on delegation only, which is left out where a library lacks one of them. */
#define LITERT_PROFILER_FUNCTIONS(X)                                                                                   \
    X(get_profiler, "LiteRtCompiledModelGetProfiler", int, (litert_handle compiled, litert_handle *profiler))          \
    X(start_profiler, "LiteRtStartProfiler", int, (litert_handle profiler))                                            \
    X(stop_profiler, "LiteRtStopProfiler", int, (litert_handle profiler))                                              \
    X(get_event_count, "LiteRtGetNumProfilerEvents", int, (litert_handle profiler, int *count))                        \
    X(get_events, "LiteRtGetProfilerEvents", int, (litert_handle profiler, int count, void *events))

#define LITERT_MEMBER(member, symbol, result, parameters) result(*member) parameters;
typedef struct {
    LITERT_FUNCTIONS(LITERT_MEMBER)
    LITERT_PROFILER_FUNCTIONS(LITERT_MEMBER)
    bool has_profiler;
} litert_api;
#undef LITERT_MEMBER

#endif
