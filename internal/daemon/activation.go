package daemon

import (
	"fmt"
	"log/slog"
	"net"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// firstInherited is the first descriptor of socket activation.
const firstInherited = 3

// inherited are the listening sockets that systemd has handed over
// (sd_listen_fds(3)). One is used for the address that it is bound to, or for
// the server whose name it has: grpc, ttrpc, grpc-tcp, debug, metrics.
type inherited struct {
	log       *slog.Logger
	listeners []namedListener
}

type namedListener struct {
	net.Listener
	name string
}

// inheritSockets takes over the sockets and clears the variables, so that no
// shim thinks that they are its own.
func inheritSockets(log *slog.Logger) *inherited {
	in := &inherited{log: log}
	pid, count, names := os.Getenv("LISTEN_PID"), os.Getenv("LISTEN_FDS"), strings.Split(os.Getenv("LISTEN_FDNAMES"), ":")
	for _, name := range []string{"LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"} {
		_ = os.Unsetenv(name)
	}
	n, err := strconv.Atoi(count)
	if err != nil || n < 1 || n > 64 || pid != strconv.Itoa(os.Getpid()) {
		return in
	}
	for i := range n {
		fd := firstInherited + i
		unix.CloseOnExec(fd)
		name := ""
		if i < len(names) {
			name = names[i]
		}
		f := os.NewFile(uintptr(fd), name)
		l, err := net.FileListener(f)
		_ = f.Close()
		if err != nil {
			log.Warn("an inherited descriptor is no listening socket", "fd", fd, "name", name, "error", err)
			continue
		}
		in.listeners = append(in.listeners, namedListener{l, name})
	}
	return in
}

// take returns the inherited socket of a server, nil when there is none.
func (in *inherited) take(server, address string) net.Listener {
	for i, l := range in.listeners {
		if l.name == server || l.Addr().String() == strings.TrimPrefix(address, "unix://") && address != "" {
			in.listeners = append(in.listeners[:i], in.listeners[i+1:]...)
			in.log.Info("a socket is inherited", "server", server, "address", l.Addr().String())
			return l.Listener
		}
	}
	return nil
}

// rest closes what nobody has asked for.
func (in *inherited) rest() {
	for _, l := range in.listeners {
		in.log.Warn("an inherited socket is closed: its address is in no configuration, and its name is none of grpc, ttrpc, grpc-tcp, debug, metrics",
			"address", l.Addr().String(), "name", l.name)
		_ = l.Close()
	}
	in.listeners = nil
}

// listenLocal is the socket of a server: inherited, or made for its owner.
func (in *inherited) listenLocal(server, address string, uid, gid int) (net.Listener, error) {
	if l := in.take(server, address); l != nil {
		return l, nil
	}
	return listenUnix(address, uid, gid)
}

// listenTCP is the same for an address of TCP.
func (in *inherited) listenTCP(server, address string) (net.Listener, error) {
	if l := in.take(server, address); l != nil {
		return l, nil
	}
	l, err := net.Listen("tcp", address)
	if err != nil {
		return nil, fmt.Errorf("server %s: %w", server, err)
	}
	return l, nil
}
