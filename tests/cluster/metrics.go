package main

import (
	"context"
	"crypto/tls"
	"net"
	"net/http"
	"time"

	"k8s.io/client-go/kubernetes"
)

// startMetrics serves a small part of metrics.k8s.io, enough to distinguish an
// aggregated response from a response of the apiserver itself. It does not request
// a client certificate: the numbers are invented and not secret.
func startMetrics(serving *identity) (port int, stop func(), err error) {
	certificate, err := tls.X509KeyPair(serving.certPEM, serving.keyPEM)
	if err != nil {
		return 0, nil, err
	}
	listener, err := net.Listen("tcp", "localhost:0")
	if err != nil {
		return 0, nil, err
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /apis/metrics.k8s.io/v1beta1", func(w http.ResponseWriter, _ *http.Request) {
		respondJSON(w, `{"kind":"APIResourceList","apiVersion":"v1","groupVersion":"metrics.k8s.io/v1beta1","resources":[`+
			`{"name":"nodes","singularName":"","namespaced":false,"kind":"NodeMetrics","verbs":["get","list"]}]}`)
	})
	mux.HandleFunc("GET "+aggregatedPath, func(w http.ResponseWriter, _ *http.Request) {
		respondJSON(w, `{"kind":"NodeMetricsList","apiVersion":"metrics.k8s.io/v1beta1","metadata":{},"items":[`+
			`{"metadata":{"name":"`+nodeName+`"},"timestamp":"2024-01-01T00:00:00Z","window":"10s",`+
			`"usage":{"cpu":"250m","memory":"1Gi"}}]}`)
	})
	server := &http.Server{Handler: mux, TLSConfig: &tls.Config{Certificates: []tls.Certificate{certificate}}}
	go server.ServeTLS(listener, "", "")
	return listener.Addr().(*net.TCPAddr).Port, func() { server.Close() }, nil
}

func respondJSON(w http.ResponseWriter, body string) {
	w.Header().Set("Content-Type", "application/json")
	w.Write([]byte(body))
}

// waitUntilServed returns when `path` responds. The apiserver checks that an
// aggregated server is available before it forwards a request to it.
func waitUntilServed(ctx context.Context, client kubernetes.Interface, path string) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		err := client.CoreV1().RESTClient().Get().AbsPath(path).MaxRetries(0).Do(ctx).Error()
		if err == nil {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return err
		}
	}
}
