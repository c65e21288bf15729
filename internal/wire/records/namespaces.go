package records

import (
	"berth/internal/object"

	api "github.com/containerd/containerd/api/services/namespaces/v1"
)

func NamespaceToProto(n object.Namespace) *api.Namespace {
	return &api.Namespace{Name: n.Name, Labels: n.Labels}
}

func NamespacesToProto(ns []object.Namespace) []*api.Namespace { return all(ns, NamespaceToProto) }

func NamespaceFromProto(n *api.Namespace) object.Namespace {
	return object.Namespace{Name: n.GetName(), Labels: n.GetLabels()}
}
