// Package task is running containers as the daemon sees them: bundles on disk,
// the shims that hold the containers, and how to reach them.
//
// # What it owns
//
// Per task a bundle, <state>/io.containerd.runtime.v2.task/<namespace>/<id>, and
// a work directory of the same path under root. Both have containerd's layout to
// the byte, so that either daemon takes over from the other with containers
// running:
//
//	config.json       OCI spec, the value of the container record's Any
//	rootfs/           where the shim mounts the root filesystem
//	work              symbolic link to the work directory
//	shim-binary-path  executable of the shim, for its delete command
//	bootstrap.json    how to reach the shim: version, address, protocol
//	                  (address, a bare text file, in bundles of containerd 1.x)
//	sandbox           ID of the sandbox whose shim is shared, if one is
//	log               FIFO into which foreign shims log
//	init.pid, …       what the shim adds
//
// Directories whose names begin with a dot are on their way out. Beside the
// namespaces, .boot-id holds the kernel's boot ID under which the bundles were
// made. Sockets of Berth's shims are <socket dir>/<sha256 of daemon address,
// namespace and group>, where containerd's shim makes its own.
//
// # How shims are started
//
// A shim that carries the annotation berth.shim.serve=1 in its -info is started
// by one exec of its serve command, with a control socket (own.go, shimproc); one such
// process is kept waiting for the next container, and one whose last container
// was deleted waits again: a daemon that starts containers one after the other
// executes no shim. Any other is started by containerd's protocol (start.go), as
// far back as shims that print an address.
// Containers of a pod share the shim of its sandbox.
//
// # Life and death of a shim
//
// There is one connection to each shim. Its loss, or the end of the process,
// which a pidfd tells, starts an inquiry (shim.go): either the shim takes a new
// connection, or it is dead. It is as good as dead when its process says that it
// is a spare again; otherwise its delete command clears away what is left,
// and the manager publishes exit and delete in its place. All other events are
// published by shims themselves.
//
// # Invariants
//
// A task is in the table before its bundle is on disk, and until after it has
// gone from there. A crash leaves one of: a bundle without a usable
// bootstrap.json (removed by Recover), a shim without a task (ended by Recover), a
// dead shim's bundle (cleared away and reported by Recover), hidden directories.
// bootstrap.json of an own shim is written before the shim gets its socket.
//
// No lock is held over a call, an exec or input and output of a shim. Manager.mu
// and shim.mu are never held together; spares.mu and infoCache.mu are leaves.
package task
