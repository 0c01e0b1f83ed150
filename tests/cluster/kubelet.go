package main

import (
	"crypto/tls"
	"errors"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"

	"k8s.io/cri-streaming/pkg/streaming/portforward"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
)

// kubelet is the part of a kubelet that the apiserver connects to: exec, attach,
// port-forward and logs. The code of Kubernetes implements the wire protocol. Only
// the container is a stand-in: a directory and processes of this machine.
type kubelet struct {
	port int
	// root has one directory for each pod.
	root   string
	server *http.Server
	pods   podRuntime
}

func startKubelet(root string, serving *identity) (*kubelet, error) {
	for _, pod := range podNames {
		if err := os.MkdirAll(filepath.Join(root, pod), 0o755); err != nil {
			return nil, err
		}
	}
	certificate, err := tls.X509KeyPair(serving.certPEM, serving.keyPEM)
	if err != nil {
		return nil, err
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	k := &kubelet{
		port: listener.Addr().(*net.TCPAddr).Port,
		root: root,
		pods: podRuntime{root: root},
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/exec/{namespace}/{pod}/{container}", k.exec)
	mux.HandleFunc("/attach/{namespace}/{pod}/{container}", k.attach)
	mux.HandleFunc("/portForward/{namespace}/{pod}", k.portForward)
	mux.HandleFunc("GET /containerLogs/{namespace}/{pod}/{container}", k.containerLogs)
	k.server = &http.Server{
		Handler:   mux,
		TLSConfig: &tls.Config{Certificates: []tls.Certificate{certificate}},
	}
	go k.server.ServeTLS(listener, "", "")
	return k, nil
}

func (k *kubelet) close() {
	k.server.Close()
	k.pods.close()
}

func (k *kubelet) exec(w http.ResponseWriter, r *http.Request) {
	options, ok := k.streamOptions(w, r)
	if !ok {
		return
	}
	remotecommand.ServeExec(w, r, &k.pods, r.PathValue("pod"), "", r.PathValue("container"),
		r.URL.Query()["command"], options, streamIdle,
		remotecommand.DefaultStreamCreationTimeout, remotecommand.SupportedStreamingProtocols)
}

func (k *kubelet) attach(w http.ResponseWriter, r *http.Request) {
	options, ok := k.streamOptions(w, r)
	if !ok {
		return
	}
	remotecommand.ServeAttach(w, r, &k.pods, r.PathValue("pod"), "", r.PathValue("container"),
		options, streamIdle,
		remotecommand.DefaultStreamCreationTimeout, remotecommand.SupportedStreamingProtocols)
}

func (k *kubelet) portForward(w http.ResponseWriter, r *http.Request) {
	if !knownPod(w, r) {
		return
	}
	options, err := portforward.NewV4Options(r)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	portforward.ServePortForward(w, r, &k.pods, r.PathValue("pod"), "", options, streamIdle,
		remotecommand.DefaultStreamCreationTimeout, portforward.SupportedProtocols)
}

func (k *kubelet) streamOptions(w http.ResponseWriter, r *http.Request) (*remotecommand.Options, bool) {
	if !knownPod(w, r) {
		return nil, false
	}
	options, err := remotecommand.NewOptions(r)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return nil, false
	}
	return options, true
}

func knownPod(w http.ResponseWriter, r *http.Request) bool {
	if slices.Contains(podNames, r.PathValue("pod")) && r.PathValue("namespace") == namespace {
		return true
	}
	http.Error(w, errUnknownPod.Error(), http.StatusNotFound)
	return false
}

var errUnknownPod = errors.New("no such pod on this node")
