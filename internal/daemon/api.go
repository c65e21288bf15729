package daemon

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"

	"berth/internal/config"
	"berth/internal/grpcapi"
	"berth/internal/version"

	"github.com/containerd/errdefs"
	"google.golang.org/grpc"
)

// errSkipped is how introspection reports a part that the configuration does
// not ask for; ctr shows it as "skip".
var errSkipped = errors.New("skip plugin")

const serverPlugin = "io.containerd.server.v1"

// listen binds the sockets. That comes last but for the API itself: who can
// connect will be answered.
func (d *Daemon) listen(context.Context) error {
	p := d.cfg.Plugins
	main, err := listenUnix(p.GRPC.Address, p.GRPC.UID, p.GRPC.GID)
	if err != nil {
		return err
	}
	d.onClose(closeListener(main))
	d.grpcListeners = append(d.grpcListeners, main)
	if d.ttrpcListener, err = listenUnix(p.TTRPC.Address, p.TTRPC.UID, p.TTRPC.GID); err != nil {
		return err
	}
	d.onClose(closeListener(d.ttrpcListener))
	d.working(grpcapi.Plugin{Type: serverPlugin, ID: "ttrpc"}, grpcapi.Plugin{Type: serverPlugin, ID: "grpc"})

	d.asked(grpcapi.Plugin{Type: serverPlugin, ID: "grpc-tcp"}, p.GRPCTCP.Address != "", func() error { return d.listenTCP(p.GRPCTCP) })
	d.asked(grpcapi.Plugin{Type: serverPlugin, ID: "debug"}, p.DebugServer.Address != "", func() error {
		l, err := listenUnix(p.DebugServer.Address, p.DebugServer.UID, p.DebugServer.GID)
		if err != nil {
			return err
		}
		d.debug = newDebugServer(l)
		d.onClose(d.debug.close)
		return nil
	})
	d.asked(grpcapi.Plugin{Type: serverPlugin, ID: "metrics"}, p.MetricServer.Address != "", func() error {
		return fmt.Errorf("metrics are not served yet: %w", errdefs.ErrNotImplemented)
	})
	return nil
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

func (d *Daemon) listenTCP(cfg config.GRPCTCP) error {
	l, err := net.Listen("tcp", cfg.Address)
	if err != nil {
		return err
	}
	if cfg.TLSCert == "" {
		d.log.Warn("everybody who reaches the TCP address is root here: it has no TLS", "address", cfg.Address)
	} else if l, err = withTLS(l, cfg); err != nil {
		return err
	}
	d.onClose(closeListener(l))
	d.grpcListeners = append(d.grpcListeners, l)
	return nil
}

func withTLS(l net.Listener, cfg config.GRPCTCP) (net.Listener, error) {
	cert, err := tls.LoadX509KeyPair(cfg.TLSCert, cfg.TLSKey)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("TLS certificate: %w", err), l.Close())
	}
	t := &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12, NextProtos: []string{"h2"}}
	if cfg.TLSCA != "" {
		pem, err := os.ReadFile(cfg.TLSCA)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("TLS CA: %w", err), l.Close())
		}
		t.ClientCAs = x509.NewCertPool()
		if !t.ClientCAs.AppendCertsFromPEM(pem) {
			return nil, errors.Join(fmt.Errorf("TLS CA %s has no certificates: %w", cfg.TLSCA, errdefs.ErrInvalidArgument), l.Close())
		}
		t.ClientAuth = tls.RequireAndVerifyClientCert
	}
	return tls.NewListener(l, t), nil
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
	d.working(services()...)
	if err := d.required(); err != nil {
		return err
	}
	memory := newTrimmer()
	d.onClose(memory.close)
	options := grpcapi.Options{
		DB:        d.db,
		Events:    d.events,
		Tasks:     d.tasks,
		Transfer:  d.transfer,
		Differ:    d.differ,
		SyncDiffs: d.cfg.Plugins.Diff.SyncFs,
		Registry:  d.registryOptions(),
		Plugins:   d.plugins,
		UUID:      id,
		Version:   version.Version,
		Revision:  version.Revision(),
		Log:       d.log,
		Activity:  memory.activity,
	}
	if d.shimEvents, err = grpcapi.NewTTRPCServer(options); err != nil {
		return err
	}
	g := d.cfg.Plugins.GRPC
	d.api = grpcapi.NewServer(options, messageLimits(g.MaxRecvMsgSize, g.MaxSendMsgSize)...)
	d.onClose(d.closeServers)
	return nil
}

func messageLimits(recv, send int) []grpc.ServerOption {
	var opts []grpc.ServerOption
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
	d.api.Shutdown(ctx)
	return d.shimEvents.Close()
}
