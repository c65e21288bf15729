package script

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	versionapi "github.com/containerd/containerd/api/services/version/v1"
	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/types/known/emptypb"
)

// cmdSignal sends the daemon a signal that does not end it.
func cmdSignal(ts *testscript.TestScript, neg bool, args []string) {
	m := of(ts)
	if len(args) != 1 || neg || m.daemon == nil {
		ts.Fatalf("usage: signal NAME, while the daemon runs")
	}
	ts.Check(m.daemon.Process.Signal(unix.SignalNum("SIG" + args[0])))
}

// cmdPorts sets variables to addresses that are free.
func cmdPorts(ts *testscript.TestScript, neg bool, args []string) {
	for _, name := range args {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		ts.Check(err)
		defer l.Close()
		ts.Setenv(name, l.Addr().String())
	}
}

// cmdGet writes what a URL answers to a file; -unix names the socket.
func cmdGet(ts *testscript.TestScript, neg bool, args []string) {
	transport := &http.Transport{DisableKeepAlives: true}
	if len(args) > 2 && args[0] == "-unix" {
		socket := args[1]
		transport.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", socket)
		}
		args = args[2:]
	}
	if len(args) != 2 {
		ts.Fatalf("usage: get [-unix SOCKET] URL FILE")
	}
	client := &http.Client{Transport: transport, Timeout: 20 * time.Second}
	resp, err := client.Get(args[0])
	if err == nil && resp.StatusCode != http.StatusOK {
		resp.Body.Close()
		err = fmt.Errorf("%s", resp.Status)
	}
	if neg != (err != nil) {
		ts.Fatalf("get %s: %v", args[0], err)
	}
	if err != nil {
		return
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	ts.Check(err)
	ts.Check(os.WriteFile(ts.MkAbs(args[1]), data, 0o600))
}

// cmdInherit hands sockets, NAME=PATH or NAME=HOST:PORT, to the next daemon.
func cmdInherit(ts *testscript.TestScript, neg bool, args []string) {
	var names []string
	var files []*os.File
	for _, arg := range args {
		name, address, ok := strings.Cut(arg, "=")
		if !ok {
			ts.Fatalf("usage: inherit NAME=ADDRESS...")
		}
		network := "unix"
		if !strings.HasPrefix(address, "/") {
			network = "tcp"
		}
		l, err := net.Listen(network, address)
		ts.Check(err)
		if u, ok := l.(*net.UnixListener); ok {
			u.SetUnlinkOnClose(false)
		}
		f, err := l.(interface{ File() (*os.File, error) }).File()
		ts.Check(err)
		ts.Check(l.Close())
		ts.Defer(func() { f.Close() })
		names, files = append(names, name), append(files, f)
	}
	of(ts).prepare = func(cmd *exec.Cmd) {
		// LISTEN_PID is the daemon's own, known once there is a process.
		cmd.Args = append([]string{"sh", "-c", `LISTEN_PID=$$ exec "$@"`, "sh", cmd.Path}, cmd.Args[1:]...)
		cmd.Path = "/bin/sh"
		cmd.ExtraFiles = files
		cmd.Env = append(cmd.Env, fmt.Sprintf("LISTEN_FDS=%d", len(files)), "LISTEN_FDNAMES="+strings.Join(names, ":"))
	}
}

// cmdNotify is systemd for the next daemon: what it is told it writes to a file.
func cmdNotify(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) != 1 {
		ts.Fatalf("usage: notify FILE")
	}
	path := of(ts).dir + "/notify.sock"
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	ts.Check(err)
	ts.Defer(func() { conn.Close() })
	f, err := os.Create(ts.MkAbs(args[0]))
	ts.Check(err)
	go func() {
		defer f.Close()
		buf := make([]byte, 4096)
		for {
			n, err := conn.Read(buf)
			if err != nil {
				return
			}
			fmt.Fprintf(f, "%s\n", buf[:n])
		}
	}()
	of(ts).prepare = func(cmd *exec.Cmd) {
		cmd.Env = append(cmd.Env, "NOTIFY_SOCKET="+path, "WATCHDOG_USEC=200000")
	}
}

// cmdCerts writes ca.pem and, for every NAME, NAME.pem and NAME.key signed by it.
func cmdCerts(ts *testscript.TestScript, neg bool, args []string) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	ts.Check(err)
	template := func(serial int64, name string, isCA bool) *x509.Certificate {
		return &x509.Certificate{
			SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
			IsCA: isCA, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
			IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		}
	}
	write := func(name, kind string, der []byte) {
		ts.Check(os.WriteFile(ts.MkAbs(name), pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600))
	}
	ca := template(1, "ca", true)
	der, err := x509.CreateCertificate(rand.Reader, ca, ca, &key.PublicKey, key)
	ts.Check(err)
	write("ca.pem", "CERTIFICATE", der)
	for i, name := range args {
		own, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		ts.Check(err)
		der, err := x509.CreateCertificate(rand.Reader, template(int64(i)+2, name, false), ca, &own.PublicKey, key)
		ts.Check(err)
		write(name+".pem", "CERTIFICATE", der)
		pkcs, err := x509.MarshalPKCS8PrivateKey(own)
		ts.Check(err)
		write(name+".key", "PRIVATE KEY", pkcs)
	}
}

// cmdDial calls the API on a TCP address: dial ADDRESS [tls [NAME]], with the
// certificate of NAME.
func cmdDial(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) < 1 {
		ts.Fatalf("usage: dial ADDRESS [tls [NAME]]")
	}
	creds := insecure.NewCredentials()
	if len(args) > 1 {
		pool := x509.NewCertPool()
		pool.AppendCertsFromPEM([]byte(ts.ReadFile("ca.pem")))
		c := &tls.Config{RootCAs: pool}
		if len(args) > 2 {
			pair, err := tls.X509KeyPair([]byte(ts.ReadFile(args[2]+".pem")), []byte(ts.ReadFile(args[2]+".key")))
			ts.Check(err)
			c.Certificates = []tls.Certificate{pair}
		}
		creds = credentials.NewTLS(c)
	}
	conn, err := grpc.NewClient(args[0], grpc.WithTransportCredentials(creds))
	ts.Check(err)
	defer conn.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	_, err = versionapi.NewVersionClient(conn).Version(ctx, &emptypb.Empty{})
	if neg != (err != nil) {
		ts.Fatalf("dial %v: %v", args, err)
	}
}

// cmdOwner compares the mode and the owner of a file: owner FILE MODE UID GID.
func cmdOwner(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) != 4 || neg {
		ts.Fatalf("usage: owner FILE MODE UID GID")
	}
	info, err := os.Stat(ts.MkAbs(args[0]))
	ts.Check(err)
	stat := info.Sys().(*syscall.Stat_t)
	if got := fmt.Sprintf("%o %d %d", info.Mode().Perm(), stat.Uid, stat.Gid); got != strings.Join(args[1:], " ") {
		ts.Fatalf("%s is %s, not %s", args[0], got, strings.Join(args[1:], " "))
	}
}
