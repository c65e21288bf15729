//go:build tools

// Package oldpeer names the programs of containerd 1.7, whose shims are taken over.
package oldpeer

import (
	_ "github.com/containerd/containerd/cmd/containerd"
	_ "github.com/containerd/containerd/cmd/containerd-shim-runc-v2"
)
