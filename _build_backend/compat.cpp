// Linked into the Linux libraries, so that one built with a new toolchain loads on an old system
// (manylinux_2_28: glibc 2.28, GCC 8). Each definition stands in for a symbol that the torch
// headers pull in and that old systems lack. Nothing of this is visible outside of the library, so
// nobody else is affected.
#include <sstream>

// glibc 2.32: std::shared_ptr asks whether it may skip atomics. "No" is always right.
extern "C" __attribute__((visibility("hidden"))) char __libc_single_threaded;
char __libc_single_threaded = 0;

// GCC 9 moved these constructors out of the header and into libstdc++ (GLIBCXX_3.4.26).
#if defined(__GLIBCXX__) && _GLIBCXX_USE_CXX11_ABI
template std::basic_ostringstream<char>::basic_ostringstream();
template std::basic_stringstream<char>::basic_stringstream();
#endif
