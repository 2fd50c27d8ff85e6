#pragma once

// For functions that are compiled once more for wider vector registers and chosen at run time.
// Lanes never mix and nothing is contracted, so every width gives the same bits.
#if defined(__GNUC__)
#define DKN_ALWAYS_INLINE [[gnu::always_inline]] inline
#define DKN_HAS_VECTOR_TYPES
#if defined(__x86_64__)
#define DKN_HAS_X86_TARGETS
#endif
#else
#define DKN_ALWAYS_INLINE inline
#endif
