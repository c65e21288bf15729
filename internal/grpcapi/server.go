package grpcapi

import (
	"context"
	"log/slog"
	"sync/atomic"

	"berth/internal/content"
	"berth/internal/diff"
	"berth/internal/events"
	"berth/internal/meta"
	"berth/internal/mount/activation"
	"berth/internal/registry"
	"berth/internal/sandbox"
	"berth/internal/task"
	"berth/internal/transfer"

	containersapi "github.com/containerd/containerd/api/services/containers/v1"
	contentapi "github.com/containerd/containerd/api/services/content/v1"
	diffapi "github.com/containerd/containerd/api/services/diff/v1"
	eventsapi "github.com/containerd/containerd/api/services/events/v1"
	imagesapi "github.com/containerd/containerd/api/services/images/v1"
	introspectionapi "github.com/containerd/containerd/api/services/introspection/v1"
	leasesapi "github.com/containerd/containerd/api/services/leases/v1"
	mountsapi "github.com/containerd/containerd/api/services/mounts/v1"
	namespacesapi "github.com/containerd/containerd/api/services/namespaces/v1"
	sandboxapi "github.com/containerd/containerd/api/services/sandbox/v1"
	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	streamingapi "github.com/containerd/containerd/api/services/streaming/v1"
	tasksapi "github.com/containerd/containerd/api/services/tasks/v1"
	transferapi "github.com/containerd/containerd/api/services/transfer/v1"
	ttrpcevents "github.com/containerd/containerd/api/services/ttrpc/events/v1"
	versionapi "github.com/containerd/containerd/api/services/version/v1"
	"github.com/containerd/ttrpc"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthapi "google.golang.org/grpc/health/grpc_health_v1"
)

// Options of the API: the engines behind it, and what it tells about the
// daemon. All are required but Registry
// and Activity.
type Options struct {
	DB       *meta.DB
	Events   *events.Exchange
	Tasks    *task.Manager
	Transfer *transfer.Service
	Mounts   *activation.Table
	// Sandboxers are the sandbox controllers by name.
	Sandboxers map[string]sandbox.Controller
	// Differ opens the differ over the content of a scope.
	Differ func(Scope) diff.Applier
	// SyncDiffs makes every apply of a layer durable before it returns.
	SyncDiffs bool
	// Registry is what transfers from and to registries begin with; clients may
	// name another directory of hosts.toml files.
	Registry func() registry.Options
	// Plugins are the parts of the daemon for introspection, in order of start.
	Plugins []Plugin
	// UUID identifies this daemon's root for ever.
	UUID string
	// Version and Revision of the daemon.
	Version, Revision string
	Log               *slog.Logger
	// Activity is told when the first call of several begins and when the last
	// has ended; may be nil.
	Activity func(busy bool)
}

// Server is a gRPC server with all services.
type Server struct {
	*grpc.Server
	stop context.CancelCauseFunc
}

// Windows of HTTP/2 flow control, in bytes: what a client may have under way on
// one stream, and on all.
const (
	streamWindow = 1 << 20
	connWindow   = 4 << 20
)

// streamWorkers serve calls; of more at a time, each gets a goroutine of its own.
const streamWorkers = 8

// NewServer makes a server; serverOptions are added to its own. The caller
// serves it and shuts it down.
func NewServer(o Options, serverOptions ...grpc.ServerOption) *Server {
	stopping, stop := context.WithCancelCause(context.Background())
	around := interceptors{log: o.Log, stopping: stopping, calls: new(atomic.Int64), activity: o.Activity}
	if around.activity == nil {
		around.activity = func(bool) {}
	}
	s := grpc.NewServer(append([]grpc.ServerOption{
		// Fixed windows: estimating them costs a ping and its answer with nearly
		// every call, and there is no distance on a unix socket to estimate.
		grpc.InitialWindowSize(streamWindow),
		grpc.InitialConnWindowSize(connWindow),
		// Goroutines that stay have stacks of the right size: growing that of a new
		// one takes a tenth of what a small call costs.
		grpc.NumStreamWorkers(streamWorkers),
		grpc.ChainUnaryInterceptor(around.unary),
		grpc.ChainStreamInterceptor(around.stream),
	}, serverOptions...)...)

	named := newStreams(stopping)
	containersapi.RegisterContainersServer(s, &containers{db: o.DB})
	contentapi.RegisterContentServer(s, newContentServer(func(ctx context.Context) content.Store {
		scope := ScopeOf(ctx)
		return o.DB.Scope(scope.Namespace, scope.Lease).Content()
	}))
	diffapi.RegisterDiffServer(s, &diffs{open: o.Differ, sync: o.SyncDiffs})
	eventsapi.RegisterEventsServer(s, &eventService{exchange: o.Events})
	imagesapi.RegisterImagesServer(s, &images{db: o.DB})
	introspectionapi.RegisterIntrospectionServer(s, &introspection{plugins: o.Plugins, uuid: o.UUID, manager: o.Tasks})
	leasesapi.RegisterLeasesServer(s, &leases{db: o.DB})
	mountsapi.RegisterMountsServer(s, &mounts{table: o.Mounts})
	namespacesapi.RegisterNamespacesServer(s, &namespaces{db: o.DB})
	sandboxapi.RegisterStoreServer(s, &sandboxes{db: o.DB})
	sandboxapi.RegisterControllerServer(s, &sandboxControllers{named: o.Sandboxers})
	snapshotsapi.RegisterSnapshotsServer(s, &snapshots{db: o.DB})
	streamingapi.RegisterStreamingServer(s, named)
	tasksapi.RegisterTasksServer(s, &tasks{db: o.DB, manager: o.Tasks, log: o.Log})
	transferapi.RegisterTransferServer(s, &transfers{engine: o.Transfer, streams: named, registry: o.Registry, log: o.Log})
	versionapi.RegisterVersionServer(s, versionService{version: o.Version, revision: o.Revision})
	healthapi.RegisterHealthServer(s, health.NewServer())
	return &Server{s, stop}
}

// NewTTRPCServer makes the server on which shims forward their events. Only
// processes of the daemon's own user are heard.
func NewTTRPCServer(o Options) (*ttrpc.Server, error) {
	s, err := ttrpc.NewServer(ttrpc.WithServerHandshaker(ttrpc.UnixSocketRequireSameUser()))
	if err != nil {
		return nil, err
	}
	ttrpcevents.RegisterTTRPCEventsService(s, ttrpcEvents{o.Events})
	return s, nil
}
