package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/signal"
	"syscall"
)

// announcement is the one line that tells the parent where everything is.
type announcement struct {
	// Kubeconfig holds Server, CA and Token, for clients that want a file.
	Kubeconfig string `json:"kubeconfig"`
	Server     string `json:"server"`
	CA         string `json:"ca"`
	Token      string `json:"token"`
	Namespace  string `json:"namespace"`
	// Pods are the running pods; what each is for is told beside their names.
	Pods []string `json:"pods"`
	// PodRoot has one directory for each pod: where its commands run.
	PodRoot string `json:"podRoot"`
	// Logs is the directory of the components' logs.
	Logs string `json:"logs"`
	// Audit is the apiserver's audit log, one JSON event on each line.
	Audit string `json:"audit"`
	// Echo and Source are the TCP ports to forward to.
	Echo   int `json:"echo"`
	Source int `json:"source"`
	// ImpersonatedUser and ImpersonatedGroup may view the namespace, no more.
	ImpersonatedUser  string `json:"impersonatedUser"`
	ImpersonatedGroup string `json:"impersonatedGroup"`
	// AggregatedPath is answered by an aggregated apiserver.
	AggregatedPath string `json:"aggregatedPath"`
}

// serve runs the cluster until standard input ends or SIGTERM arrives.
//
// Standard input is the leash: the parent holds its other end, so however the
// parent ends, the cluster ends too. A parent-death signal would be wrong here,
// since it fires when the parent's thread ends, and a test is a thread.
//
// The line "restart" on standard input restarts the apiserver on its port.
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
		// Told to stop while starting is not a failure.
		if ctx.Err() != nil {
			return nil
		}
		return err
	}
	defer cluster.close()
	if err := say(cluster.announcement); err != nil {
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
			if command != "restart" {
				return fmt.Errorf("unknown command %q", command)
			}
			if err := cluster.restartAPIServer(ctx); err != nil {
				return err
			}
			if err := say(map[string]bool{"restarted": true}); err != nil {
				return err
			}
		}
	}
}

// say writes one line of JSON to standard output.
func say(value any) error {
	line, err := json.Marshal(value)
	if err != nil {
		return err
	}
	_, err = os.Stdout.Write(append(line, '\n'))
	return err
}
