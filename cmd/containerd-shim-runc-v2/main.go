// Command containerd-shim-runc-v2 holds containers for the daemon: see package shim.
package main

import (
	"context"
	"fmt"
	"os"

	"berth/internal/shim"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "containerd-shim-runc-v2:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) > 0 && args[0] == "serve" {
		return shim.ServeSpare(context.Background())
	}
	return fmt.Errorf("unknown arguments")
}
