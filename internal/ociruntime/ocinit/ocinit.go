// Package ocinit is the container side of the built-in OCI runtime: a program
// that links it can be executed again, with the argument "init", to become the
// first process of a container or a process that joins one.
//
// The namespaces are made by C code that runs as a constructor, before the Go
// runtime. The rest of the work is done in this package's init function and
// not in main: the Go runtime initialises a package as soon as those that it
// imports are, so what the shim needs besides (protocol messages above all) is
// never initialised in a container's init, which is on the path of each start.
package ocinit

import (
	"os"

	"github.com/opencontainers/runc/libcontainer"
	_ "github.com/opencontainers/runc/libcontainer/nsenter" // the C constructor
)

func init() {
	// The environment variable keeps a user's "containerd-shim-runc-v2 init"
	// from being taken for a container's.
	if len(os.Args) == 2 && os.Args[1] == "init" && os.Getenv("_LIBCONTAINER_INITPIPE") != "" {
		libcontainer.Init() // does not return
	}
}

// Linked does nothing; a package that calls it cannot be linked without this one.
func Linked() {}
