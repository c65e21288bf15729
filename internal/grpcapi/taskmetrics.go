package grpcapi

import (
	"context"
	"slices"
	"sync"
	"time"

	"berth/internal/filter"
	"berth/internal/object"
	"berth/internal/wire"

	api "github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/errdefs"
)

const (
	// metricsTimeout bounds how long one shim may take to answer; the metrics of
	// a task whose shim does not are left out.
	metricsTimeout = 2 * time.Second
	// metricsWorkers bounds how many shims are asked at a time.
	metricsWorkers = 16
)

// Metrics of the tasks that match any filter (fields id and namespace), in the
// order of their list. A task that ends meanwhile is left out.
func (s *tasks) Metrics(ctx context.Context, req *api.MetricsRequest) (*api.MetricsResponse, error) {
	selected, err := filter.ParseAll(req.Filters...)
	if err != nil {
		return nil, err
	}
	namespace := ScopeOf(ctx).Namespace
	list, err := s.manager.List(ctx, namespace)
	if err != nil {
		return nil, err
	}
	list = slices.DeleteFunc(list, func(p object.Process) bool {
		return !selected.Match(filter.AdaptorFunc(func(path []string) (string, bool) {
			switch {
			case len(path) == 1 && path[0] == "id":
				return p.ContainerID, true
			case len(path) == 1 && path[0] == "namespace":
				return namespace, true
			}
			return "", false
		}))
	})
	metrics := make([]*types.Metric, len(list))
	var (
		wg   sync.WaitGroup
		slot = make(chan struct{}, metricsWorkers)
	)
	for i, p := range list {
		slot <- struct{}{}
		wg.Go(func() {
			defer func() { <-slot }()
			metrics[i] = s.metric(ctx, namespace, p.ContainerID)
		})
	}
	wg.Wait()
	return &api.MetricsResponse{Metrics: slices.DeleteFunc(metrics, func(m *types.Metric) bool { return m == nil })}, nil
}

// metric of a task, nil when its shim has none to give; the log says why.
func (s *tasks) metric(ctx context.Context, namespace, id string) *types.Metric {
	ctx, cancel := context.WithTimeout(ctx, metricsTimeout)
	defer cancel()
	data, at, err := s.manager.Stats(ctx, namespace, id)
	if err != nil {
		if !errdefs.IsNotFound(err) { // one that has just ended
			s.log.Warn("metrics of a task are left out", "namespace", namespace, "id", id, "error", err)
		}
		return nil
	}
	return &types.Metric{Timestamp: wire.TimeToProto(at), ID: id, Data: wire.AnyToProto(&data)}
}
