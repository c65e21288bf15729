package grpcapi

import (
	"context"

	health "google.golang.org/grpc/health/grpc_health_v1"
)

// healthService says SERVING: the server answers only when it is.
type healthService struct {
	health.UnimplementedHealthServer
}

func (healthService) Check(context.Context, *health.HealthCheckRequest) (*health.HealthCheckResponse, error) {
	return &health.HealthCheckResponse{Status: health.HealthCheckResponse_SERVING}, nil
}
