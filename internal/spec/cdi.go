package spec

import (
	"fmt"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"tags.cncf.io/container-device-interface/pkg/cdi"
	"tags.cncf.io/container-device-interface/pkg/parser"
)

// IsCDI tells whether name is a device of the Container Device Interface, such
// as nvidia.com/gpu=0, and not the path of a node.
func IsCDI(name string) bool { return parser.IsQualifiedName(name) }

// Inventory is what the CDI specs of a host describe. The zero value is empty.
type Inventory struct{ cache *cdi.Cache }

// OpenInventory reads the specs in dirs, the later the higher in priority;
// /etc/cdi and /var/run/cdi when there are none. A broken spec file hides its
// own devices and no others.
func OpenInventory(dirs ...string) (Inventory, error) {
	opts := []cdi.Option{cdi.WithAutoRefresh(false)}
	if len(dirs) > 0 {
		opts = append(opts, cdi.WithSpecDirs(dirs...))
	}
	cache, err := cdi.NewCache(opts...)
	if err != nil {
		return Inventory{}, fmt.Errorf("reading the CDI specs of this host: %w", err)
	}
	return Inventory{cache}, nil
}

// GPUs are the names of the GPUs with these numbers, of the vendor that has a
// spec on this host. errdefs.ErrNotFound when none has.
func (i Inventory) GPUs(numbers ...int) ([]string, error) {
	// Compat: these two, in this order.
	known := []string{"nvidia.com", "amd.com"}
	var vendors []string
	if i.cache != nil {
		vendors = i.cache.ListVendors()
	}
	at := slices.IndexFunc(known, func(v string) bool { return slices.Contains(vendors, v) })
	if at < 0 {
		return nil, fmt.Errorf("no CDI spec in /etc/cdi or /var/run/cdi describes GPUs of %s: generate one, e.g. with 'nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml': %w",
			strings.Join(known, " or "), errdefs.ErrNotFound)
	}
	names := make([]string, len(numbers))
	for n, number := range numbers {
		names[n] = fmt.Sprintf("%s/gpu=%d", known[at], number)
	}
	return names, nil
}

// inject adds the nodes, mounts, variables and hooks of devices to s.
func (i Inventory) inject(s *specs.Spec, devices []string) error {
	if i.cache == nil {
		return fmt.Errorf("CDI devices %s: no inventory: %w", strings.Join(devices, ", "), errdefs.ErrInvalidArgument)
	}
	missing, err := i.cache.InjectDevices(s, devices...)
	if err == nil {
		return nil
	}
	if len(missing) == 0 {
		return fmt.Errorf("CDI devices %s: %w", strings.Join(devices, ", "), err)
	}
	have := "none"
	if names := i.cache.ListDevices(); len(names) > 0 {
		have = strings.Join(names, ", ")
	}
	return fmt.Errorf("no CDI spec in %s describes the device %s; there are: %s: %w",
		strings.Join(i.cache.GetSpecDirectories(), " or "), strings.Join(missing, ", "), have, errdefs.ErrNotFound)
}
