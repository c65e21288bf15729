package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"berth/cmd/ctr/output"

	containersapi "github.com/containerd/containerd/api/services/containers/v1"
	"github.com/containernetworking/cni/libcni"
	"github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/types/known/anypb"
)

// network is the host's first CNI network, which run --cni attaches a container
// to: configurations in /etc/cni/net.d (NETCONFPATH), plugins in /opt/cni/bin
// (CNI_PATH, a list).
type network struct {
	cni  *libcni.CNIConfig
	list *libcni.NetworkConfigList
}

func openNetwork() (*network, error) {
	confDir := envOr("NETCONFPATH", "/etc/cni/net.d")
	files, err := libcni.ConfFiles(confDir, []string{".conf", ".conflist", ".json"})
	if err != nil {
		return nil, fmt.Errorf("--cni: reading %s: %w", confDir, err)
	}
	if len(files) == 0 {
		return nil, fmt.Errorf("--cni: there is no network configuration in %s; put a .conflist there, or name another directory in NETCONFPATH", confDir)
	}
	slices.Sort(files)
	list, err := readNetwork(files[0])
	if err != nil {
		return nil, fmt.Errorf("--cni: %s: %w", files[0], err)
	}
	if len(list.Plugins) == 0 {
		return nil, fmt.Errorf("--cni: %s names no plugin", files[0])
	}
	path := filepath.SplitList(envOr("CNI_PATH", "/opt/cni/bin"))
	return &network{cni: libcni.NewCNIConfig(path, nil), list: list}, nil
}

func readNetwork(file string) (*libcni.NetworkConfigList, error) {
	if strings.HasSuffix(file, ".conflist") {
		return libcni.NetworkConfFromFile(file)
	}
	conf, err := libcni.ConfFromFile(file)
	if err != nil {
		return nil, err
	}
	return libcni.ConfListFromConf(conf)
}

func envOr(name, otherwise string) string {
	if v := os.Getenv(name); v != "" {
		return v
	}
	return otherwise
}

func (n *network) runtime(s *session, id, netns string) *libcni.RuntimeConf {
	// Compat: the container's name for plugins, and that of its interface.
	return &libcni.RuntimeConf{ContainerID: s.namespace + "-" + id, NetNS: netns, IfName: "eth0"}
}

// attach gives the network namespace of a process an interface. On failure
// nothing stays allocated.
func (n *network) attach(ctx context.Context, s *session, id string, pid uint32) error {
	rt := n.runtime(s, id, fmt.Sprintf("/proc/%d/ns/net", pid))
	if _, err := n.cni.AddNetworkList(ctx, n.list, rt); err != nil {
		ctx, cancel := afterwards(ctx)
		defer cancel()
		if e := n.cni.DelNetworkList(ctx, n.list, rt); e != nil {
			err = fmt.Errorf("%w (and taking back what was done: %w)", err, e)
		}
		return fmt.Errorf("attaching to the network %s: %w", n.list.Name, err)
	}
	return nil
}

// detach gives back what attach took. The namespace may be gone; doing it twice
// is harmless.
func (n *network) detach(ctx context.Context, s *session, id string) error {
	ctx, cancel := afterwards(ctx)
	defer cancel()
	if err := n.cni.DelNetworkList(ctx, n.list, n.runtime(s, id, "")); err != nil {
		return fmt.Errorf("detaching from the network %s: %w", n.list.Name, err)
	}
	return nil
}

// The extension of containers that run --cni made, as containerd's ctr has it.
const (
	cniExtension    = "ctr.cni-containerd.metadata"
	cniExtensionURL = "github.com/containerd/containerd/v2/cmd/ctr/commands/NetworkMetaData"
)

func cniExtensions() map[string]*anypb.Any {
	return map[string]*anypb.Any{cniExtension: {TypeUrl: cniExtensionURL, Value: []byte(`{"EnableCni":true}`)}}
}

// detachStopped gives back the network of a container whose task has ended. The
// container can be removed whatever comes of it.
func detachStopped(ctx context.Context, s *session, c *containersapi.Container) {
	if c.Extensions[cniExtension] == nil {
		return
	}
	n, err := openNetwork()
	if err == nil {
		err = n.detach(ctx, s, c.ID)
	}
	if err != nil {
		output.Warn("container %s: %v", c.ID, err)
	}
}

// ownsNetwork tells whether a container has a network namespace of its own.
func ownsNetwork(s *specs.Spec) bool {
	return s.Linux != nil && slices.ContainsFunc(s.Linux.Namespaces, func(ns specs.LinuxNamespace) bool { return ns.Type == specs.NetworkNamespace })
}
