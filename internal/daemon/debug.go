package daemon

import (
	"errors"
	"net"
	"net/http"
	"net/http/pprof"
	"time"
)

// debugServer serves the profiles of net/http/pprof under /debug/pprof/.
type debugServer struct {
	http     http.Server
	listener net.Listener
}

func newDebugServer(l net.Listener) *debugServer {
	mux := http.NewServeMux()
	mux.HandleFunc("/debug/pprof/", pprof.Index)
	mux.HandleFunc("/debug/pprof/cmdline", pprof.Cmdline)
	mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("/debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
	return &debugServer{http: http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Minute}, listener: l}
}

func (s *debugServer) serve() error {
	if err := s.http.Serve(s.listener); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

func (s *debugServer) close() error { return s.http.Close() }
