package daemon

import (
	"errors"
	"expvar"
	"net"
	"net/http"
	"net/http/pprof"
	"strings"
	"time"
)

// httpServer serves a handler on one listener.
type httpServer struct {
	name     string
	http     http.Server
	listener net.Listener
}

func newHTTPServer(name string, l net.Listener, h http.Handler) *httpServer {
	// Only the head of a request has a deadline: profiles take their time.
	return &httpServer{name: name, http: http.Server{Handler: h, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute}, listener: l}
}

func (s *httpServer) serve() error {
	if err := s.http.Serve(s.listener); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

func (s *httpServer) close() error { return s.http.Close() }

// debugHandler has the profiles of net/http/pprof and the variables of expvar
// where everybody looks for them.
func debugHandler() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("/debug/vars", expvar.Handler())
	mux.HandleFunc("/debug/pprof/", pprof.Index)
	mux.HandleFunc("/debug/pprof/cmdline", pprof.Cmdline)
	mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("/debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
	return mux
}

// isLocal tells a socket's path from host:port.
func isLocal(address string) bool {
	return strings.HasPrefix(address, "/") || strings.HasPrefix(address, "unix://")
}
