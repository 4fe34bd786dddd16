// csi-btrfs is the test cluster's CSI driver: one node, volumes are btrfs
// subvolumes or ext4 disk images on btrfs, snapshots are read-only subvolume
// snapshots and therefore atomic. It logs the true instant of every cut to a JSON-lines file
// and misbehaves on demand (knobs.go), so that tests can hold a product's
// claims against the ground truth.
package main

import (
	"context"
	"flag"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	registerapi "k8s.io/kubelet/pkg/apis/pluginregistration/v1"
)

func main() {
	name := flag.String("driver-name", "btrfs.csi.stillpoint.dev", "CSI driver name")
	node := flag.String("node-id", "node", "node name")
	socket := flag.String("socket", "", "path of the CSI socket")
	registry := flag.String("registry", "", "kubelet's plugins_registry directory; empty: do not register")
	root := flag.String("root", "", "a mounted btrfs filesystem")
	knobs := flag.String("knobs", "", "JSON file of faults, read at every CreateSnapshot")
	cuts := flag.String("cuts", "", "JSON-lines log of RPCs and true cuts")
	flag.Parse()

	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	store, err := openStore(*root)
	if err != nil {
		log.Error("open store", "error", err)
		os.Exit(1)
	}
	ledger, err := newLedger(*cuts)
	if err != nil {
		log.Error("open ledger", "error", err)
		os.Exit(1)
	}
	driver := &driver{name: *name, node: *node, store: store, knobs: *knobs, ledger: ledger, log: log}

	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	csiServer := grpc.NewServer(grpc.UnaryInterceptor(driver.logged))
	csi.RegisterIdentityServer(csiServer, driver)
	csi.RegisterControllerServer(csiServer, driver)
	csi.RegisterGroupControllerServer(csiServer, driver)
	csi.RegisterNodeServer(csiServer, driver)
	serve(log, csiServer, *socket)
	if *registry != "" {
		registration := grpc.NewServer()
		registerapi.RegisterRegistrationServer(registration, &kubeletRegistration{name: *name, endpoint: *socket, log: log})
		serve(log, registration, filepath.Join(*registry, strings.ReplaceAll(*name, "/", "_")+"-reg.sock"))
		defer registration.Stop()
	}
	<-ctx.Done()
	csiServer.GracefulStop()
}

// serve listens on a unix socket, replacing a stale one, and serves in the background.
func serve(log *slog.Logger, server *grpc.Server, socket string) {
	_ = os.Remove(socket)
	listener, err := net.Listen("unix", socket)
	if err != nil {
		log.Error("listen", "socket", socket, "error", err)
		os.Exit(1)
	}
	go func() {
		if err := server.Serve(listener); err != nil {
			log.Error("serve", "socket", socket, "error", err)
			os.Exit(1)
		}
	}()
}

// kubeletRegistration answers the kubelet's plugin watcher (the job of node-driver-registrar).
type kubeletRegistration struct {
	registerapi.UnimplementedRegistrationServer
	name, endpoint string
	log            *slog.Logger
}

func (k *kubeletRegistration) GetInfo(context.Context, *registerapi.InfoRequest) (*registerapi.PluginInfo, error) {
	return &registerapi.PluginInfo{Type: registerapi.CSIPlugin, Name: k.name, Endpoint: k.endpoint, SupportedVersions: []string{"1.0.0"}}, nil
}

func (k *kubeletRegistration) NotifyRegistrationStatus(_ context.Context, s *registerapi.RegistrationStatus) (*registerapi.RegistrationStatusResponse, error) {
	k.log.Info("kubelet registration", "ok", s.PluginRegistered, "error", s.Error)
	return &registerapi.RegistrationStatusResponse{}, nil
}
