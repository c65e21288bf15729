package records

import (
	"berth/internal/object"
	"berth/internal/wire"

	api "github.com/containerd/containerd/api/services/leases/v1"
)

func LeaseToProto(l object.Lease) *api.Lease {
	return &api.Lease{ID: l.ID, Labels: l.Labels, CreatedAt: wire.TimeToProto(l.CreatedAt)}
}

func LeasesToProto(ls []object.Lease) []*api.Lease { return all(ls, LeaseToProto) }

func LeaseFromProto(l *api.Lease) object.Lease {
	return object.Lease{ID: l.GetID(), Labels: l.GetLabels(), CreatedAt: wire.TimeFromProto(l.GetCreatedAt())}
}

func ResourceToProto(r object.Resource) *api.Resource {
	return &api.Resource{ID: r.ID, Type: r.Type}
}

func ResourcesToProto(rs []object.Resource) []*api.Resource { return all(rs, ResourceToProto) }

func ResourceFromProto(r *api.Resource) object.Resource {
	return object.Resource{ID: r.GetID(), Type: r.GetType()}
}
