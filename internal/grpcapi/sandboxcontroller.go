package grpcapi

import (
	"context"
	"fmt"

	api "github.com/containerd/containerd/api/services/sandbox/v1"
	"github.com/containerd/errdefs"
)

// sandboxControllers is the controller service of a daemon that has no
// sandboxer: each call says so with the sandboxer that was asked for.
type sandboxControllers struct {
	api.UnimplementedControllerServer
}

func noController(name string) error {
	if name == "" {
		return fmt.Errorf("sandbox controller name can not be empty: %w", errdefs.ErrInvalidArgument)
	}
	return fmt.Errorf("sandbox controller %q: this daemon has none: %w", name, errdefs.ErrNotFound)
}

func (sandboxControllers) Create(_ context.Context, req *api.ControllerCreateRequest) (*api.ControllerCreateResponse, error) {
	return nil, noController(req.Sandboxer)
}

func (sandboxControllers) Start(_ context.Context, req *api.ControllerStartRequest) (*api.ControllerStartResponse, error) {
	return nil, noController(req.Sandboxer)
}

func (sandboxControllers) Platform(_ context.Context, req *api.ControllerPlatformRequest) (*api.ControllerPlatformResponse, error) {
	return nil, noController(req.Sandboxer)
}

func (sandboxControllers) Stop(_ context.Context, req *api.ControllerStopRequest) (*api.ControllerStopResponse, error) {
	return nil, noController(req.Sandboxer)
}

func (sandboxControllers) Wait(_ context.Context, req *api.ControllerWaitRequest) (*api.ControllerWaitResponse, error) {
	return nil, noController(req.Sandboxer)
}

func (sandboxControllers) Status(_ context.Context, req *api.ControllerStatusRequest) (*api.ControllerStatusResponse, error) {
	return nil, noController(req.Sandboxer)
}

func (sandboxControllers) Shutdown(_ context.Context, req *api.ControllerShutdownRequest) (*api.ControllerShutdownResponse, error) {
	return nil, noController(req.Sandboxer)
}

func (sandboxControllers) Metrics(_ context.Context, req *api.ControllerMetricsRequest) (*api.ControllerMetricsResponse, error) {
	return nil, noController(req.Sandboxer)
}

func (sandboxControllers) Update(_ context.Context, req *api.ControllerUpdateRequest) (*api.ControllerUpdateResponse, error) {
	return nil, noController(req.Sandboxer)
}
