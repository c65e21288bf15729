package ocinit

// A thread that calls malloc first gets an arena of its own from glibc: 128 MiB
// of address space mapped and half of it given back, for each of the Go runtime's
// threads in a container's init and for every thread of a shim that begins. The
// Go runtime allocates little that way; one arena does.

/*
#include <malloc.h>

__attribute__((constructor)) static void one_arena(void) { mallopt(M_ARENA_MAX, 1); }
*/
import "C"
