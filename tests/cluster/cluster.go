package main

import (
	"context"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"time"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
)

// startLimit is the longest wait for an apiserver. A start takes some tens of
// seconds on a busy machine with two cores.
const startLimit = 3 * time.Minute

// cluster has all running components, and the functions that stop them.
type cluster struct {
	announcement announcement
	etcd         *component
	apiserver    *component
	// others are more apiservers with the same data, by address.
	others map[string]*otherAPIServer

	issuers       *issuers
	dir           string
	apiserverArgs []string
	port          *reservedPort
	// admin is how client reaches the apiserver.
	admin  *rest.Config
	client *kubernetes.Clientset
	// undo runs in reverse when the cluster closes.
	undo []func()
}

// startCluster starts the components and creates the objects. If it fails, it
// stops the components that it has started.
func startCluster(ctx context.Context) (_ *cluster, err error) {
	c := &cluster{others: map[string]*otherAPIServer{}}
	defer func() {
		if err != nil {
			c.close()
		}
	}()
	if c.dir, err = os.MkdirTemp("", "cluster-"); err != nil {
		return nil, err
	}
	c.undo = append(c.undo, func() { os.RemoveAll(c.dir) })

	ca, err := newAuthority("cluster-ca")
	if err != nil {
		return nil, err
	}
	caFile := filepath.Join(c.dir, "ca.crt")
	if err := os.WriteFile(caFile, ca.pem, 0o644); err != nil {
		return nil, err
	}
	if err := c.startEtcdAndAPIServer(ctx, ca, caFile); err != nil {
		return nil, err
	}
	serving, err := ca.issue(c.dir, "kubelet", pkix.Name{CommonName: "system:node:" + nodeName}, "127.0.0.1", metricsServiceName)
	if err != nil {
		return nil, err
	}
	kubelet, err := startKubelet(filepath.Join(c.dir, "pods"), serving)
	if err != nil {
		return nil, err
	}
	c.undo = append(c.undo, kubelet.close)
	metricsPort, stopMetrics, err := startMetrics(serving)
	if err != nil {
		return nil, err
	}
	c.undo = append(c.undo, stopMetrics)
	echo, source, stopPorts, err := startForwardTargets()
	if err != nil {
		return nil, err
	}
	c.undo = append(c.undo, stopPorts)

	if err := createNode(ctx, c.client, kubelet.port); err != nil {
		return nil, fmt.Errorf("create the node: %w", err)
	}
	if err := createPods(ctx, c.client); err != nil {
		return nil, fmt.Errorf("create the pods: %w", err)
	}
	token, err := createAccounts(ctx, c.client)
	if err != nil {
		return nil, fmt.Errorf("create the accounts: %w", err)
	}
	if err := createAggregatedAPI(ctx, c.client, metricsPort, ca.pem); err != nil {
		return nil, fmt.Errorf("create the aggregated API: %w", err)
	}
	user, err := ca.issue(c.dir, "user", pkix.Name{
		CommonName: "jane", Organization: []string{certificateGroup, "on call"},
		// The id of the user, as kube-apiserver reads it.
		ExtraNames: []pkix.AttributeTypeAndValue{{
			Type: asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 57683, 2}, Value: "7d1a",
		}},
	})
	if err != nil {
		return nil, err
	}
	kubeconfig := filepath.Join(c.dir, "kubeconfig")
	server := "https://" + c.port.address()
	if err := writeKubeconfig(kubeconfig, server, caFile, token); err != nil {
		return nil, err
	}
	c.announcement = announcement{
		Kubeconfig: kubeconfig, Server: server, CA: caFile, Token: token,
		Namespace: namespace, Pods: podNames, PodRoot: kubelet.root,
		Logs: c.dir, Audit: filepath.Join(c.dir, "audit.log"),
		Echo: echo, Source: source,
		ImpersonatedUser: impersonatedUser, ImpersonatedGroup: impersonatedGroup,
		UserCertificate: user.certFile, UserKey: user.keyFile,
		FrontProxyCertificate: filepath.Join(c.dir, frontProxyFiles+".crt"),
		FrontProxyKey:         filepath.Join(c.dir, frontProxyFiles+".key"),
		Issuers:               c.issuers.all,
		AggregatedPath:        aggregatedPath,
	}
	return c, nil
}

// startEtcdAndAPIServer returns when the apiserver is ready.
func (c *cluster) startEtcdAndAPIServer(ctx context.Context, ca *authority, caFile string) error {
	etcdPort, err := reservePort()
	if err != nil {
		return err
	}
	c.undo = append(c.undo, etcdPort.release)
	if c.etcd, err = startComponent("etcd", c.dir, etcdArgs(c.dir, etcdPort)); err != nil {
		return err
	}
	c.undo = append(c.undo, c.etcd.kill)

	if c.issuers, err = startIssuers(c.dir, ca); err != nil {
		return err
	}
	c.undo = append(c.undo, c.issuers.close)
	if c.port, err = reservePort(); err != nil {
		return err
	}
	c.undo = append(c.undo, c.port.release)
	if c.apiserverArgs, err = apiserverArgs(c.dir, ca, caFile, c.issuers.config, c.port, etcdPort); err != nil {
		return err
	}
	admin, err := ca.issue(c.dir, "admin", pkix.Name{CommonName: "fixture", Organization: []string{"system:masters"}})
	if err != nil {
		return err
	}
	c.admin = &rest.Config{
		Host: "https://" + c.port.address(),
		TLSClientConfig: rest.TLSClientConfig{
			CAData: ca.pem, CertData: admin.certPEM, KeyData: admin.keyPEM,
		},
		QPS: -1,
	}
	if c.client, err = kubernetes.NewForConfig(c.admin); err != nil {
		return err
	}
	// The closure reads the field when the cluster closes, because a restart changes it.
	c.undo = append(c.undo, func() {
		if c.apiserver != nil {
			c.apiserver.kill()
		}
	})
	return c.startAPIServer(ctx)
}

func (c *cluster) startAPIServer(ctx context.Context) (err error) {
	if c.apiserver, err = startComponent("kube-apiserver", c.dir, c.apiserverArgs); err != nil {
		return err
	}
	if err := c.waitUntilReady(ctx, c.apiserver, c.client); err != nil {
		return err
	}
	return c.issuers.waitUntilTrusted(ctx, c.admin)
}

// otherAPIServer is an apiserver beside the one of the announcement.
type otherAPIServer struct {
	running *component
	args    []string
	client  *kubernetes.Clientset
}

// startAnotherAPIServer starts another apiserver with the same data and settings,
// and returns its address. Each needs about 350 MiB of memory.
func (c *cluster) startAnotherAPIServer(ctx context.Context) (string, error) {
	port, err := reservePort()
	if err != nil {
		return "", err
	}
	c.undo = append(c.undo, port.release)
	config := rest.CopyConfig(c.admin)
	config.Host = "https://" + port.address()
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return "", err
	}
	other := &otherAPIServer{
		args: append(slices.Clone(c.apiserverArgs),
			// The last value of a flag counts.
			fmt.Sprintf("--secure-port=%d", port.port),
			"--audit-log-path="+filepath.Join(c.dir, fmt.Sprintf("audit-%d.log", port.port)),
		),
		client: client,
	}
	// The closure reads the field when the cluster closes, because a restart changes it.
	c.undo = append(c.undo, func() {
		if other.running != nil {
			other.running.kill()
		}
	})
	c.others[port.address()] = other
	return port.address(), c.startOther(ctx, other)
}

func (c *cluster) startOther(ctx context.Context, other *otherAPIServer) (err error) {
	if other.running, err = startComponent("kube-apiserver", c.dir, other.args); err != nil {
		return err
	}
	return c.waitUntilReady(ctx, other.running, other.client)
}

// killOther kills another apiserver, which is not the one of the announcement.
func (c *cluster) killOther(address string) (*otherAPIServer, error) {
	other := c.others[address]
	if other == nil {
		return nil, fmt.Errorf("no other apiserver has the address %q", address)
	}
	other.running.kill()
	return other, nil
}

// restartOther kills another apiserver and starts it again on the same port.
func (c *cluster) restartOther(ctx context.Context, address string) error {
	other, err := c.killOther(address)
	if err != nil {
		return err
	}
	return c.startOther(ctx, other)
}

// waitUntilReady waits until this apiserver, which client uses, is ready.
func (c *cluster) waitUntilReady(ctx context.Context, apiserver *component, client *kubernetes.Clientset) error {
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		var status int
		client.RESTClient().Get().AbsPath("/readyz").MaxRetries(0).Do(ctx).StatusCode(&status)
		if status == http.StatusOK {
			return nil
		}
		select {
		case <-tick.C:
		case <-c.etcd.done:
			return c.etcd.failure()
		case <-apiserver.done:
			return apiserver.failure()
		case <-ctx.Done():
			return errors.Join(ctx.Err(), apiserver.failure())
		}
	}
}

// restartAPIServer stops the apiserver and starts it again on the same port with
// the same data. In between, the port refuses connections.
func (c *cluster) restartAPIServer(ctx context.Context) error {
	c.apiserver.stop()
	return c.startAPIServer(ctx)
}

func (c *cluster) close() {
	for i := len(c.undo) - 1; i >= 0; i-- {
		c.undo[i]()
	}
}
