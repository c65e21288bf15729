package shim

import (
	"encoding/json"
	"fmt"
	"strconv"

	"google.golang.org/protobuf/encoding/protowire"
)

// bootstrap is what a daemon tells a shim that it starts. There are three forms,
// and the answer is in that of the question:
//
//   - a containerd.runtime.bootstrap.v1.BootstrapParams message on standard input,
//     answered by a BootstrapResult message (containerd 2.3 and later);
//   - flags and environment with MAX_SHIM_VERSION, answered by a JSON object;
//   - flags and environment without it, answered by the bare address.
//
// The messages are read and written by hand, since their package links gRPC.
type bootstrap struct {
	id, namespace string
	address       string // of the daemon's gRPC socket
	ttrpcAddress  string
	socketDir     string
	debug         bool
	reply         func(address string) ([]byte, error)
}

// Fields of BootstrapParams and BootstrapResult.
const (
	paramID, paramNamespace, paramLogLevel             = 1, 2, 3
	paramTTRPC, paramGRPC, paramSocketDir              = 5, 6, 9
	resultVersion, resultAddress, resultProtocol       = 1, 2, 3
	logLevelDebug                                int32 = -4
)

// taskVersion is the latest version of the task API that the shim serves.
const taskVersion = 3

// decodeBootstrap takes what stands on standard input; ok is false when that is
// not a BootstrapParams message for this shim: older daemons write the options of
// the runtime there, and flags say all else.
func decodeBootstrap(raw []byte, id, namespace string) (b bootstrap, ok bool) {
	b.reply = protobufReply
	for len(raw) > 0 {
		num, typ, n := protowire.ConsumeTag(raw)
		if n < 0 {
			return b, false
		}
		raw = raw[n:]
		switch typ {
		case protowire.BytesType:
			v, n := protowire.ConsumeBytes(raw)
			if n < 0 {
				return b, false
			}
			raw = raw[n:]
			switch num {
			case paramID:
				b.id = string(v)
			case paramNamespace:
				b.namespace = string(v)
			case paramTTRPC:
				b.ttrpcAddress = string(v)
			case paramGRPC:
				b.address = string(v)
			case paramSocketDir:
				b.socketDir = string(v)
			}
		case protowire.VarintType:
			v, n := protowire.ConsumeVarint(raw)
			if n < 0 {
				return b, false
			}
			raw = raw[n:]
			if num == paramLogLevel {
				b.debug = int32(v) <= logLevelDebug
			}
		default:
			n := protowire.ConsumeFieldValue(num, typ, raw)
			if n < 0 {
				return b, false
			}
			raw = raw[n:]
		}
	}
	return b, b.id == id && b.namespace == namespace && id != ""
}

func protobufReply(address string) ([]byte, error) {
	var out []byte
	out = protowire.AppendTag(out, resultVersion, protowire.VarintType)
	out = protowire.AppendVarint(out, taskVersion)
	out = protowire.AppendTag(out, resultAddress, protowire.BytesType)
	out = protowire.AppendString(out, address)
	out = protowire.AppendTag(out, resultProtocol, protowire.BytesType)
	return protowire.AppendString(out, "ttrpc"), nil
}

// flagReply answers a daemon that has no bootstrap messages. maxVersion is its
// MAX_SHIM_VERSION, empty when there is none.
func flagReply(maxVersion string) func(address string) ([]byte, error) {
	if maxVersion == "" {
		return func(address string) ([]byte, error) { return []byte(address), nil }
	}
	return func(address string) ([]byte, error) {
		version, err := strconv.Atoi(maxVersion)
		if err != nil || version < 2 {
			return nil, fmt.Errorf("MAX_SHIM_VERSION is %q: this shim serves versions 2 and 3 of the task API", maxVersion)
		}
		return json.Marshal(struct {
			Version  int    `json:"version"`
			Address  string `json:"address"`
			Protocol string `json:"protocol"`
		}{min(version, taskVersion), address, "ttrpc"})
	}
}
