package spec

import (
	"fmt"
	"maps"
	"math"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"go.yaml.in/yaml/v3"
	"golang.org/x/sys/unix"
)

// BlockIOClasses are named sets of weights and throttles for block devices: the
// YAML file that blockio_config_file of containerd and CRI-O names,
//
//	Classes:
//	  slow:
//	    - Weight: 80                      # of every device
//	    - Devices: [/dev/vd*]
//	      ThrottleReadBps: 50M            # also ThrottleWriteBps, ThrottleReadIOPS, ThrottleWriteIOPS
type BlockIOClasses map[string][]blockIOItem

type blockIOItem struct {
	Devices           []string `yaml:"Devices"` // paths with wildcards
	Weight            string   `yaml:"Weight"`
	ThrottleReadBps   string   `yaml:"ThrottleReadBps"`
	ThrottleWriteBps  string   `yaml:"ThrottleWriteBps"`
	ThrottleReadIOPS  string   `yaml:"ThrottleReadIOPS"`
	ThrottleWriteIOPS string   `yaml:"ThrottleWriteIOPS"`
}

// maxClasses bounds the size of a file of classes.
const maxClasses = 1 << 20

// ReadBlockIO reads a file of classes. Unknown keys are errors, and so are
// values out of range: errdefs.ErrInvalidArgument.
func ReadBlockIO(path string) (BlockIOClasses, error) {
	st, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("block IO classes: %w", err)
	}
	if st.Size() > maxClasses {
		return nil, fmt.Errorf("block IO classes: %s has %d bytes, at most %d are read: %w", path, st.Size(), maxClasses, errdefs.ErrInvalidArgument)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("block IO classes: %w", err)
	}
	classes, err := parseBlockIO(b)
	if err != nil {
		return nil, fmt.Errorf("block IO classes in %s: %w", path, err)
	}
	return classes, nil
}

func parseBlockIO(b []byte) (BlockIOClasses, error) {
	var file struct {
		Classes BlockIOClasses `yaml:"Classes"`
	}
	dec := yaml.NewDecoder(strings.NewReader(string(b)))
	dec.KnownFields(true)
	if err := dec.Decode(&file); err != nil {
		return nil, fmt.Errorf("%w: %w", err, errdefs.ErrInvalidArgument)
	}
	for name, items := range file.Classes {
		for i, item := range items {
			if err := item.check(); err != nil {
				return nil, fmt.Errorf("class %s, item %d: %w: %w", name, i+1, err, errdefs.ErrInvalidArgument)
			}
		}
	}
	return file.Classes, nil
}

func (item blockIOItem) check() error {
	if _, err := parseWeight(item.Weight); err != nil {
		return err
	}
	for _, rate := range item.rates() {
		if _, err := parseRate(rate.text); err != nil {
			return fmt.Errorf("%s: %w", rate.key, err)
		}
		if rate.text != "" && item.Devices == nil {
			return fmt.Errorf("%s is of no use without Devices", rate.key)
		}
	}
	return nil
}

// blockIORate is a throttle of an item, and where the runtime spec has it.
type blockIORate struct {
	key, text string
	list      func(*specs.LinuxBlockIO) *[]specs.LinuxThrottleDevice
}

func (item blockIOItem) rates() []blockIORate {
	type list = *[]specs.LinuxThrottleDevice
	return []blockIORate{
		{"ThrottleReadBps", item.ThrottleReadBps, func(b *specs.LinuxBlockIO) list { return &b.ThrottleReadBpsDevice }},
		{"ThrottleWriteBps", item.ThrottleWriteBps, func(b *specs.LinuxBlockIO) list { return &b.ThrottleWriteBpsDevice }},
		{"ThrottleReadIOPS", item.ThrottleReadIOPS, func(b *specs.LinuxBlockIO) list { return &b.ThrottleReadIOPSDevice }},
		{"ThrottleWriteIOPS", item.ThrottleWriteIOPS, func(b *specs.LinuxBlockIO) list { return &b.ThrottleWriteIOPSDevice }},
	}
}

// Class is what a class means on this host. Later items win over earlier ones;
// wildcards that match no block device mean nothing.
// errdefs.ErrNotFound when there is no such class.
func (c BlockIOClasses) Class(name string) (*specs.LinuxBlockIO, error) {
	items, ok := c[name]
	if !ok {
		return nil, fmt.Errorf("there is no block IO class %q, only %q: %w", name, slices.Sorted(maps.Keys(c)), errdefs.ErrNotFound)
	}
	out := &specs.LinuxBlockIO{}
	for _, item := range items {
		weight, err := parseWeight(item.Weight)
		if err != nil {
			return nil, err
		}
		if item.Devices == nil {
			if weight != nil {
				out.Weight = weight
			}
			continue
		}
		devices, err := blockDevices(item.Devices)
		if err != nil {
			return nil, fmt.Errorf("block IO class %s: %w", name, err)
		}
		for _, rdev := range devices {
			if err := item.apply(out, rdev, weight); err != nil {
				return nil, err
			}
		}
	}
	return out, nil
}

func (item blockIOItem) apply(out *specs.LinuxBlockIO, rdev uint64, weight *uint16) error {
	major, minor := int64(unix.Major(rdev)), int64(unix.Minor(rdev))
	if weight != nil {
		d := specs.LinuxWeightDevice{Weight: weight}
		d.Major, d.Minor = major, minor
		i := slices.IndexFunc(out.WeightDevice, func(o specs.LinuxWeightDevice) bool { return o.Major == major && o.Minor == minor })
		if i < 0 {
			out.WeightDevice = append(out.WeightDevice, d)
		} else {
			out.WeightDevice[i] = d
		}
	}
	for _, rate := range item.rates() {
		n, err := parseRate(rate.text)
		if err != nil {
			return err
		}
		if n == nil {
			continue
		}
		d := specs.LinuxThrottleDevice{Rate: *n}
		d.Major, d.Minor = major, minor
		list := rate.list(out)
		i := slices.IndexFunc(*list, func(o specs.LinuxThrottleDevice) bool { return o.Major == major && o.Minor == minor })
		if i < 0 {
			*list = append(*list, d)
		} else {
			(*list)[i] = d
		}
	}
	return nil
}

// blockDevices are the device numbers of the block devices that patterns match,
// links followed, in ascending order of their paths.
func blockDevices(patterns []string) ([]uint64, error) {
	var out []uint64
	for _, pattern := range patterns {
		paths, err := filepath.Glob(pattern)
		if err != nil {
			return nil, fmt.Errorf("devices %q: %w: %w", pattern, err, errdefs.ErrInvalidArgument)
		}
		for _, path := range paths {
			var st unix.Stat_t
			if unix.Stat(path, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFBLK && !slices.Contains(out, uint64(st.Rdev)) {
				out = append(out, uint64(st.Rdev))
			}
		}
	}
	return out, nil
}

func parseWeight(text string) (*uint16, error) {
	n, err := parseRate(text)
	if err != nil || n == nil {
		return nil, err
	}
	if *n < 10 || *n > 1000 {
		return nil, fmt.Errorf("Weight %s is not between 10 and 1000", text)
	}
	weight := uint16(*n)
	return &weight, nil
}

// parseRate reads a Kubernetes quantity such as 10k, 1.5M or 2Gi; nil for "".
func parseRate(text string) (*uint64, error) {
	if text == "" {
		return nil, nil
	}
	number := strings.TrimRight(text, "kKMGTPEi")
	unit := map[string]int64{
		"": 1, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15, "E": 1e18,
		"Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30, "Ti": 1 << 40, "Pi": 1 << 50, "Ei": 1 << 60,
	}[text[len(number):]]
	v, ok := new(big.Rat).SetString(number)
	if !ok || unit == 0 || len(number) > 20 || strings.ContainsAny(number, "/eEpPxX_") {
		return nil, fmt.Errorf("%q is not a quantity such as 10k, 1.5M or 2Gi", text)
	}
	v.Mul(v, new(big.Rat).SetInt64(unit))
	if v.Sign() < 0 || v.Cmp(new(big.Rat).SetInt64(math.MaxInt64)) > 0 {
		return nil, fmt.Errorf("%q is out of range", text)
	}
	// Quantities round up.
	n := new(big.Int).Add(v.Num(), new(big.Int).Sub(v.Denom(), big.NewInt(1)))
	rate := n.Div(n, v.Denom()).Uint64()
	return &rate, nil
}
