package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/klog/v2"
)

// catchUpLimit is the longest wait for all informers to see a change. A reflector
// waits slightly more than 30 s at most before it tries again.
const catchUpLimit = time.Minute

// crowd is many informers of one ConfigMap that changes all the time. Each has a
// connection of its own. A reflector that resumes sees every change; one that
// lists again skips some.
type crowd struct {
	config   *rest.Config
	selector string
	// watch is how long each watch lasts at least, and twice that at most, as with a
	// reflector. Zero: 5 minutes, as client-go chooses.
	watch time.Duration
	size  int

	// lists counts the requests for all objects: one per informer, and one for
	// each time that a reflector lists again. compressed counts those of them
	// whose response was compressed.
	lists, compressed atomic.Int64
	// missed counts the changes that an informer skipped.
	missed atomic.Int64
	// newest is the last change that was made.
	newest atomic.Int64

	mu   sync.Mutex
	seen []*atomic.Int64
}

// runInformers reads commands from standard input:
//
//	more N   starts N informers, and prints {"synced": N} when they have all objects
//	forget   counts from now on only, and prints {"relists": how many there were}
//	report   makes ten more changes, waits until every informer has seen the last one, and prints the counts
//
// It ends when standard input ends.
func runInformers(args []string) error {
	flags := flag.NewFlagSet("informers", flag.ContinueOnError)
	kubeconfig := flags.String("kubeconfig", "", "the kubeconfig of the informers")
	writer := flags.String("writer", "", "the kubeconfig of the client that makes the changes")
	name := flags.String("name", "changing", "name of the ConfigMap that changes")
	http1 := flags.Bool("http1", false, "speak HTTP/1.1 instead of HTTP/2")
	every := flags.Duration("every", 50*time.Millisecond, "time between two changes")
	watch := flags.Duration("watch", 0, "how long a watch lasts at least, and twice that at most")
	if err := flags.Parse(args); err != nil {
		return err
	}
	log := captureLog()
	config, err := clientcmd.BuildConfigFromFlags("", *kubeconfig)
	if err != nil {
		return err
	}
	config.QPS = -1
	if *http1 {
		config.NextProtos = []string{"http/1.1"}
	}
	direct, err := clientFor(*writer)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	c := &crowd{config: config, selector: "changing=" + *name, watch: *watch}
	stopChanges, err := c.startChanges(ctx, direct, *name, *every)
	if err != nil {
		return err
	}
	commands := bufio.NewScanner(os.Stdin)
	for commands.Scan() {
		command, count, _ := strings.Cut(commands.Text(), " ")
		switch command {
		case "more":
			n, err := strconv.Atoi(count)
			if err != nil {
				return err
			}
			if err := c.start(ctx, n); err != nil {
				return err
			}
			if err := printJSON(map[string]int{"synced": n}); err != nil {
				return err
			}
		case "forget":
			relists := c.lists.Swap(int64(c.size)) - int64(c.size)
			c.missed.Store(0)
			log.forget()
			if err := printJSON(map[string]int64{"relists": relists}); err != nil {
				return err
			}
		case "report":
			c.waitForChanges(10)
			if err := stopChanges(); err != nil {
				return err
			}
			if err := printJSON(map[string]any{
				"informers": c.size, "pending": c.pending(), "missed": c.missed.Load(), "changes": c.newest.Load(),
				"relists": c.lists.Load() - int64(c.size), "compressed": c.compressed.Load(),
				"complaints": log.complaints(),
			}); err != nil {
				return err
			}
		default:
			return fmt.Errorf("unknown command %q", command)
		}
	}
	return nil
}

// startChanges creates the ConfigMap and changes it until the returned function is
// called.
func (c *crowd) startChanges(ctx context.Context, client kubernetes.Interface, name string, every time.Duration) (func() error, error) {
	key, value, _ := strings.Cut(c.selector, "=")
	object := &corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{key: value}},
		Data:       map[string]string{"change": "0"},
	}
	maps := client.CoreV1().ConfigMaps(namespace)
	if _, err := maps.Create(ctx, object, metav1.CreateOptions{}); err != nil {
		return nil, err
	}
	ctx, stop := context.WithCancel(ctx)
	done := make(chan error, 1)
	go func() {
		tick := time.NewTicker(every)
		defer tick.Stop()
		for n := int64(1); ; n++ {
			select {
			case <-tick.C:
			case <-ctx.Done():
				done <- nil
				return
			}
			object.Data["change"] = strconv.FormatInt(n, 10)
			// Not with ctx: the last change is made or not, but never unknown.
			if _, err := maps.Update(context.Background(), object, metav1.UpdateOptions{}); err != nil {
				done <- err
				return
			}
			c.newest.Store(n)
		}
	}()
	return func() error { stop(); return <-done }, nil
}

// start starts n informers and waits until they have all objects.
func (c *crowd) start(ctx context.Context, n int) error {
	var synced []cache.InformerSynced
	for range n {
		config := rest.CopyConfig(c.config)
		// A dial function of its own, so that client-go does not share the
		// connections of another informer.
		dialer := &net.Dialer{Timeout: 10 * time.Second}
		config.Dial = dialer.DialContext
		config.Wrap(func(next http.RoundTripper) http.RoundTripper { return &listCounter{crowd: c, next: next} })
		client, err := kubernetes.NewForConfig(config)
		if err != nil {
			return err
		}
		factory := informers.NewSharedInformerFactoryWithOptions(client, 0,
			informers.WithNamespace(namespace),
			informers.WithTweakListOptions(func(options *metav1.ListOptions) {
				options.LabelSelector = c.selector
				if c.watch > 0 && options.TimeoutSeconds != nil {
					seconds := int64(c.watch.Seconds() * (1 + rand.Float64()))
					options.TimeoutSeconds = &seconds
				}
			}),
		)
		informer := factory.Core().V1().ConfigMaps().Informer()
		seen := &atomic.Int64{}
		handler, err := informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
			AddFunc: func(object any) { seen.Store(change(object)) },
			UpdateFunc: func(old, object any) {
				before, now := change(old), change(object)
				if now > before+1 {
					c.missed.Add(now - before - 1)
				}
				seen.Store(now)
			},
		})
		if err != nil {
			return err
		}
		synced = append(synced, handler.HasSynced)
		factory.Start(ctx.Done())
		c.mu.Lock()
		c.seen = append(c.seen, seen)
		c.mu.Unlock()
	}
	c.size += n
	limit, cancel := context.WithTimeout(ctx, catchUpLimit)
	defer cancel()
	if !cache.WaitForCacheSync(limit.Done(), synced...) {
		return errors.New("the informers did not get all objects in time")
	}
	return nil
}

// waitForChanges waits until n more changes were made, so that every watch that has
// ended must be resumed to see the last one.
func (c *crowd) waitForChanges(n int64) {
	limit := time.After(catchUpLimit)
	for until := c.newest.Load() + n; c.newest.Load() < until; {
		select {
		case <-limit:
			return
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// pending waits until every informer has seen the last change, and returns how many
// have not.
func (c *crowd) pending() int {
	limit := time.After(catchUpLimit)
	for {
		c.mu.Lock()
		pending := 0
		for _, seen := range c.seen {
			if seen.Load() != c.newest.Load() {
				pending++
			}
		}
		c.mu.Unlock()
		if pending == 0 {
			return 0
		}
		select {
		case <-limit:
			return pending
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func change(object any) int64 {
	if configMap, ok := object.(*corev1.ConfigMap); ok {
		n, err := strconv.ParseInt(configMap.Data["change"], 10, 64)
		if err == nil {
			return n
		}
	}
	return -1
}

// listCounter counts the requests of a crowd for all objects.
type listCounter struct {
	crowd *crowd
	next  http.RoundTripper
}

func (l *listCounter) RoundTrip(request *http.Request) (*http.Response, error) {
	query := request.URL.Query()
	isList := query.Get("watch") == "" || query.Get("sendInitialEvents") == "true"
	if isList {
		l.crowd.lists.Add(1)
	}
	response, err := l.next.RoundTrip(request)
	// The transport has removed the field Content-Encoding.
	if isList && err == nil && response.Uncompressed {
		l.crowd.compressed.Add(1)
	}
	return response, err
}

// logLines is what client-go logs.
type logLines struct {
	mu    sync.Mutex
	lines []string
}

// captureLog makes klog write to the returned value.
func captureLog() *logLines {
	lines := &logLines{}
	klog.LogToStderr(false)
	klog.SetOutput(lines)
	return lines
}

func (l *logLines) Write(line []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lines = append(l.lines, string(bytes.TrimSpace(line)))
	return len(line), nil
}

// forget removes what was logged so far.
func (l *logLines) forget() {
	klog.Flush()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lines = nil
}

// complaints returns the errors and warnings, each once. A reflector reports an
// error event, and a watch that was too short, with an information whose text
// begins with "Warning".
func (l *logLines) complaints() []string {
	klog.Flush()
	l.mu.Lock()
	defer l.mu.Unlock()
	complaints := []string{}
	for _, line := range l.lines {
		_, text, _ := strings.Cut(line, "] ")
		isComplaint := strings.HasPrefix(line, "E") || strings.HasPrefix(line, "W") || strings.Contains(text, "Warning")
		if isComplaint && !slices.Contains(complaints, text) {
			complaints = append(complaints, text)
		}
	}
	return complaints
}
