package grpcapi

import (
	"context"

	api "github.com/containerd/containerd/api/services/version/v1"
	"google.golang.org/protobuf/types/known/emptypb"
)

type versionService struct {
	api.UnimplementedVersionServer
	version, revision string
}

func (s versionService) Version(context.Context, *emptypb.Empty) (*api.VersionResponse, error) {
	return &api.VersionResponse{Version: s.version, Revision: s.revision}, nil
}
