package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
)

// announcement is the line of JSON that tells the parent the addresses and paths.
type announcement struct {
	// Kubeconfig contains Server, CA and Token, for clients that need a file.
	Kubeconfig string `json:"kubeconfig"`
	Server     string `json:"server"`
	CA         string `json:"ca"`
	Token      string `json:"token"`
	Namespace  string `json:"namespace"`
	// Pods are the running pods; see the constants with their names.
	Pods []string `json:"pods"`
	// PodRoot has one directory for each pod, in which its commands run.
	PodRoot string `json:"podRoot"`
	// Logs is the directory with the logs of the components.
	Logs string `json:"logs"`
	// Audit is the apiserver's audit log, with one JSON event per line.
	Audit string `json:"audit"`
	// Echo and Source are the TCP ports to forward to.
	Echo   int `json:"echo"`
	Source int `json:"source"`
	// ImpersonatedUser and ImpersonatedGroup may only view the namespace.
	ImpersonatedUser  string `json:"impersonatedUser"`
	ImpersonatedGroup string `json:"impersonatedGroup"`
	// UserCertificate and UserKey are the files of a user with a client certificate,
	// who may do everything.
	UserCertificate string `json:"userCertificate"`
	UserKey         string `json:"userKey"`
	// FrontProxyCertificate and FrontProxyKey are the files of a front proxy that the
	// apiserver believes.
	FrontProxyCertificate string `json:"frontProxyCertificate"`
	FrontProxyKey         string `json:"frontProxyKey"`
	// Issuers are two identity providers that the apiserver trusts.
	Issuers []*issuer `json:"issuers"`
	// AggregatedPath is a path that an aggregated apiserver serves.
	AggregatedPath string `json:"aggregatedPath"`
}

// serve runs the cluster until standard input ends or SIGTERM arrives.
//
// The parent keeps the other end of standard input open. So the cluster ends when
// the parent ends, even if the parent is killed. A parent-death signal would be
// wrong here: it is sent when the parent's thread ends, and a test is a thread.
//
// The line "restart" on standard input restarts the apiserver on its port. The
// line "another" starts another apiserver with the same data. "kill ADDRESS" kills
// such a one, and "restart ADDRESS" kills it and starts it again.
func serve() error {
	ctx, cancel := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer cancel()
	commands := make(chan string)
	go func() {
		defer cancel()
		lines := bufio.NewScanner(os.Stdin)
		for lines.Scan() {
			select {
			case commands <- lines.Text():
			case <-ctx.Done():
				return
			}
		}
	}()

	cluster, err := startCluster(ctx)
	if err != nil {
		// A stop during the start is not a failure.
		if ctx.Err() != nil {
			return nil
		}
		return err
	}
	defer cluster.close()
	if err := printJSON(cluster.announcement); err != nil {
		return err
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-cluster.etcd.done:
			return cluster.etcd.failure()
		case <-cluster.apiserver.done:
			return cluster.apiserver.failure()
		case command := <-commands:
			answer, err := cluster.obey(ctx, command)
			if err != nil {
				return err
			}
			if err := printJSON(answer); err != nil {
				return err
			}
		}
	}
}

// obey runs a command of the parent and returns the answer to it.
func (c *cluster) obey(ctx context.Context, command string) (any, error) {
	name, address, _ := strings.Cut(command, " ")
	switch name {
	case "restart":
		answer := map[string]bool{"restarted": true}
		if address != "" {
			return answer, c.restartOther(ctx, address)
		}
		return answer, c.restartAPIServer(ctx)
	case "another":
		address, err := c.startAnotherAPIServer(ctx)
		return map[string]string{"another": address}, err
	case "kill":
		_, err := c.killOther(address)
		return map[string]bool{"killed": true}, err
	default:
		return nil, fmt.Errorf("unknown command %q", command)
	}
}

// printJSON writes one line of JSON to standard output.
func printJSON(value any) error {
	line, err := json.Marshal(value)
	if err != nil {
		return err
	}
	_, err = os.Stdout.Write(append(line, '\n'))
	return err
}
