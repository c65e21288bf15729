package daemon

import (
	"context"
	"errors"
	"net"
	"sync"

	"berth/internal/config"
	"berth/internal/grpcapi"
	"berth/internal/trace/otlp"
	"berth/internal/version"

	"google.golang.org/grpc"
)

// errSkipped is how introspection reports a part that the configuration does
// not ask for; ctr shows it as "skip".
var errSkipped = errors.New("skip plugin")

const serverPlugin = "io.containerd.server.v1"

// listen binds the sockets, or takes over those that systemd has bound. That
// comes last but for the API itself: who can connect will be answered.
func (d *Daemon) listen(context.Context) (err error) {
	p := d.cfg.Plugins
	in := inheritSockets(d.log)
	defer in.rest()
	if d.grpcListener, err = in.listenLocal("grpc", p.GRPC.Address, p.GRPC.UID, p.GRPC.GID); err != nil {
		return err
	}
	d.onClose(closeListener(d.grpcListener))
	if d.ttrpcListener, err = in.listenLocal("ttrpc", p.TTRPC.Address, p.TTRPC.UID, p.TTRPC.GID); err != nil {
		return err
	}
	d.onClose(closeListener(d.ttrpcListener))
	d.working(grpcapi.Plugin{Type: serverPlugin, ID: "ttrpc"}, grpcapi.Plugin{Type: serverPlugin, ID: "grpc"})

	d.asked(grpcapi.Plugin{Type: serverPlugin, ID: "grpc-tcp"}, p.GRPCTCP.Address != "", func() (err error) {
		if d.tcpCreds, err = tlsCredentials(p.GRPCTCP); err != nil {
			return err
		}
		if d.tcpListener, err = in.listenTCP("grpc-tcp", p.GRPCTCP.Address); err != nil {
			return err
		}
		if d.tcpCreds == nil {
			d.log.Warn("everybody who reaches the TCP address is root here: it has no TLS", "address", p.GRPCTCP.Address)
		} else if p.GRPCTCP.TLSCA == "" {
			d.log.Warn("everybody who reaches the TCP address is root here: clients need no certificate without tls_ca", "address", p.GRPCTCP.Address)
		}
		d.onClose(closeListener(d.tcpListener))
		return nil
	})
	d.asked(grpcapi.Plugin{Type: serverPlugin, ID: "debug"}, p.DebugServer.Address != "", func() error {
		l, err := d.listenDebug(in, p.DebugServer)
		if err != nil {
			return err
		}
		d.addHTTP(newHTTPServer("debug", l, debugHandler()))
		return nil
	})
	containers := d.openMetrics()
	d.asked(grpcapi.Plugin{Type: serverPlugin, ID: "metrics"}, p.MetricServer.Address != "", func() error {
		l, err := in.listenTCP("metrics", p.MetricServer.Address)
		if err != nil {
			return err
		}
		d.addHTTP(d.metricsServer(l, containers))
		return nil
	})
	return nil
}

func (d *Daemon) listenDebug(in *inherited, s config.DebugServer) (net.Listener, error) {
	if isLocal(s.Address) {
		return in.listenLocal("debug", s.Address, s.UID, s.GID)
	}
	return in.listenTCP("debug", s.Address)
}

func (d *Daemon) addHTTP(s *httpServer) {
	d.https = append(d.https, s)
	d.onClose(s.close)
}

// asked starts a part that runs only when the configuration asks for it.
func (d *Daemon) asked(p grpcapi.Plugin, yes bool, start func() error) {
	if !yes {
		p.Err = errSkipped
		d.working(p)
		return
	}
	d.optional(p, start)
}

// closeListener closes a listener that its server may have closed already.
func closeListener(l net.Listener) func() error {
	return func() error {
		if err := l.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
			return err
		}
		return nil
	}
}

func (d *Daemon) openAPI(context.Context) error {
	id, err := loadUUID(d.cfg.Root)
	if err != nil {
		return err
	}
	d.working(d.enabled(services())...)
	if err := d.required(); err != nil {
		return err
	}
	memory := newTrimmer()
	d.onClose(memory.close)
	options := grpcapi.Options{
		DB:         d.db,
		Events:     d.events,
		Tasks:      d.tasks,
		Transfer:   d.transfer,
		Mounts:     d.mounts,
		Sandboxers: d.sandboxers,
		Differ:     d.differ,
		SyncDiffs:  d.cfg.Plugins.Diff.SyncFs,
		Registry:   d.registryOptions(),
		Plugins:    d.plugins,
		UUID:       id,
		Version:    version.Version,
		Revision:   version.Revision(),
		Log:        d.log,
		Activity:   memory.activity,
	}
	if d.shimEvents, err = grpcapi.NewTTRPCServer(options); err != nil {
		return err
	}
	g := d.cfg.Plugins.GRPC
	d.api = grpcapi.NewServer(options, d.serverOptions(g.MaxRecvMsgSize, g.MaxSendMsgSize)...)
	if d.calls != nil {
		d.calls.Serve(d.api.Server)
	}
	if d.tcpListener != nil {
		g := d.cfg.Plugins.GRPCTCP
		opts := d.serverOptions(g.MaxRecvMsgSize, g.MaxSendMsgSize)
		if d.tcpCreds != nil {
			opts = append(opts, grpc.Creds(d.tcpCreds))
		}
		d.tcpAPI = grpcapi.NewServer(options, opts...)
	}
	d.onClose(d.closeServers)
	return nil
}

// serverOptions are the limits of messages in bytes, and who looks on.
func (d *Daemon) serverOptions(recv, send int) []grpc.ServerOption {
	opts := refuseDisabled(d.disabledServices())
	if d.calls != nil {
		opts = append(opts, grpc.StatsHandler(d.calls))
	}
	if d.tracer != nil {
		opts = append(opts, grpc.StatsHandler(otlp.Calls{Tracer: d.tracer}))
	}
	if recv > 0 {
		opts = append(opts, grpc.MaxRecvMsgSize(recv))
	}
	if send > 0 {
		opts = append(opts, grpc.MaxSendMsgSize(send))
	}
	return opts
}

func (d *Daemon) closeServers() error {
	ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
	defer cancel()
	var servers sync.WaitGroup
	servers.Go(func() { d.api.Shutdown(ctx) })
	if d.tcpAPI != nil {
		servers.Go(func() { d.tcpAPI.Shutdown(ctx) })
	}
	servers.Wait()
	return d.shimEvents.Close()
}
