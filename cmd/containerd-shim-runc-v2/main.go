// Command containerd-shim-runc-v2 holds containers for the daemon: see package shim.
//
//	containerd-shim-runc-v2 -namespace NS -id ID -address ADDR [-debug] start     start a shim for the bundle in the working directory
//	containerd-shim-runc-v2 -namespace NS -id ID [-bundle DIR] delete             remove what a shim that is gone left
//	containerd-shim-runc-v2 -namespace NS -id ID -address ADDR [-debug]           be the shim; its socket is file descriptor 3
//	containerd-shim-runc-v2 serve                                                 wait on file descriptor 3 for an assignment, then be the shim
//	containerd-shim-runc-v2 -info | -v                                            tell about this program
//
// The number of processors is not adapted to the cgroup: finding out costs more,
// in this process and in each container's init, than it is worth.
//
//go:debug containermaxprocs=0
//go:debug updatemaxprocs=0
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"runtime"

	"berth/internal/shim"
)

// name is what the shim goes by in -info.
const name = "io.containerd.runc.v2"

// version and revision are set when the program is linked (-X).
var version, revision = "unknown", "unknown"

func main() {
	if err := run(context.Background(), os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "containerd-shim-runc-v2:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	if len(args) > 0 && args[0] == "serve" {
		// What follows is room for the command line that people see.
		return shim.ServeSpare(ctx)
	}
	var f shim.Flags
	var info, showVersion bool
	set := flag.NewFlagSet("containerd-shim-runc-v2", flag.ContinueOnError)
	set.StringVar(&f.Namespace, "namespace", "", "namespace of the container")
	set.StringVar(&f.ID, "id", "", "ID of the container")
	set.StringVar(&f.Bundle, "bundle", "", "bundle of the container, for delete (default: beside the working directory)")
	set.StringVar(&f.Address, "address", "", "the daemon's gRPC socket")
	set.BoolVar(&f.Debug, "debug", false, "log more")
	set.BoolVar(&info, "info", false, "write a RuntimeInfo message to standard output; options are read from standard input")
	set.BoolVar(&showVersion, "v", false, "print the version")
	set.BoolVar(&showVersion, "version", false, "print the version")
	set.String("publish-binary", "", "ignored: events go to TTRPC_ADDRESS")
	set.String("socket", "", "ignored: the socket is inherited")
	if err := set.Parse(args); err != nil {
		return err
	}
	switch {
	case showVersion:
		fmt.Printf("containerd-shim-runc-v2:\n  Version:  %s\n  Revision: %s\n  Go version: %s\n", version, revision, runtime.Version())
		return nil
	case info:
		return shim.Info(name, version, revision, os.Stdin, os.Stdout)
	}
	switch action := set.Arg(0); action {
	case "start":
		return shim.Start(ctx, f, os.Stdin, os.Stdout)
	case "delete":
		return shim.Cleanup(ctx, f, os.Stdout, os.Stderr)
	case "":
		return shim.ServeInherited(ctx, f)
	default:
		return fmt.Errorf("%q is not an action: start, delete or serve", action)
	}
}
