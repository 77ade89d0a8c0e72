package bucket

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/smithy-go/logging"
)

// form is how the URL of a bucket looks, for error messages.
const form = "s3://BUCKET[/PREFIX][?region=R&endpoint=URL&use_path_style=true&profile=P]"

// location is what the URL of a bucket says.
type location struct {
	bucket, prefix            string
	region, endpoint, profile string
	pathStyle                 *bool // nil: as the endpoint suggests
}

// parse reads the URL of a bucket. Its errors do not repeat the URL: somebody may have put a key in.
func parse(raw string) (c location, err error) {
	u, err := url.Parse(raw)
	if err != nil {
		return c, fmt.Errorf("blobs: not a URL; it looks like %s", form)
	}
	if u.Scheme != "s3" || u.Host == "" {
		return c, fmt.Errorf("blobs: not the URL of a bucket; it looks like %s", form)
	}
	if u.User != nil {
		return c, errors.New("blobs: a URL is no place for keys; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in the environment")
	}
	query, err := url.ParseQuery(u.RawQuery)
	if err != nil {
		return c, fmt.Errorf("blobs: what follows ? in the URL cannot be read; it looks like %s", form)
	}
	c.bucket = u.Host
	if path := strings.Trim(u.Path, "/"); path != "" {
		c.prefix = path + "/"
	}
	for name, values := range query {
		value := values[len(values)-1]
		switch name {
		case "region":
			c.region = value
		case "endpoint":
			if c.endpoint, err = parseEndpoint(value); err != nil {
				return c, err
			}
		case "profile":
			c.profile = value
		case "prefix":
			if c.prefix != "" {
				return c, errors.New("blobs: the URL has a prefix in its path and another as a parameter; give one")
			}
			c.prefix = value
		case "use_path_style":
			yes, err := strconv.ParseBool(value)
			if err != nil {
				return c, errors.New("blobs: use_path_style is true or false")
			}
			c.pathStyle = &yes
		default:
			return c, fmt.Errorf("blobs: no parameter %q; the URL looks like %s", name, form)
		}
	}
	return c, nil
}

func parseEndpoint(value string) (string, error) {
	u, err := url.Parse(value)
	if err != nil || u.Host == "" || u.User != nil || u.Scheme != "http" && u.Scheme != "https" {
		return "", errors.New("blobs: endpoint is a URL such as https://minio.example:9000, without a key")
	}
	return value, nil
}

// connect makes the client of the storage, and has a look into the bucket.
func (b *Bucket) connect(ctx context.Context, c location) error {
	// Bodies have their own limits; here are those of what comes before.
	client := awshttp.NewBuildableClient().
		WithDialerOptions(func(d *net.Dialer) { d.Timeout, d.KeepAlive = 5*time.Second, 15*time.Second }).
		WithTransportOptions(func(t *http.Transport) {
			t.TLSHandshakeTimeout = 5 * time.Second
			t.MaxIdleConns, t.MaxIdleConnsPerHost, t.IdleConnTimeout = 64, 64, time.Minute
			t.ReadBufferSize, t.WriteBufferSize = 32<<10, 32<<10
			t.DisableCompression = true
		})
	load := []func(*config.LoadOptions) error{
		config.WithHTTPClient(client),
		config.WithLogger(logging.Nop{}),                                   // errors say what there is to say
		config.WithRetryer(func() aws.Retryer { return aws.NopRetryer{} }), // we repeat ourselves: see Bucket.try
		// Other checksums than S3 has always had are foreign to most that is not Amazon's.
		config.WithRequestChecksumCalculation(aws.RequestChecksumCalculationWhenRequired),
		config.WithResponseChecksumValidation(aws.ResponseChecksumValidationWhenRequired),
	}
	if c.region != "" {
		load = append(load, config.WithRegion(c.region))
	}
	if c.profile != "" {
		load = append(load, config.WithSharedConfigProfile(c.profile))
	}
	cfg, err := config.LoadDefaultConfig(ctx, load...)
	if err != nil {
		return fmt.Errorf("blobs: the AWS settings of this machine: %w", err)
	}
	b.s3 = s3.NewFromConfig(cfg, func(o *s3.Options) {
		if c.endpoint != "" {
			o.BaseEndpoint = &c.endpoint
		}
		if o.Region == "" && o.BaseEndpoint != nil {
			o.Region = "us-east-1" // most that is not Amazon's has one region, called so
		}
		o.UsePathStyle = o.BaseEndpoint != nil
		if c.pathStyle != nil {
			o.UsePathStyle = *c.pathStyle
		}
	})
	o := b.s3.Options()
	b.where = "bucket " + b.name
	if o.BaseEndpoint != nil {
		b.where += " at " + *o.BaseEndpoint
	} else if o.Region == "" {
		return fmt.Errorf("blobs: no region for %s; add ?region=… to its URL, or set AWS_REGION", b.where)
	}
	return b.look(ctx, o)
}

// look lists one object: that asks whatever may be wrong with a bucket.
func (b *Bucket) look(ctx context.Context, o s3.Options) error {
	keys, cancel := context.WithTimeout(ctx, b.patience.call)
	defer cancel()
	if _, err := o.Credentials.Retrieve(keys); err != nil {
		return fmt.Errorf("blobs: no keys for %s; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, name a profile with profile=…, or give the machine a role: %w", b.where, err)
	}
	err := b.try(ctx, b.patience.call, func(ctx context.Context) error {
		_, err := b.s3.ListObjectsV2(ctx, &s3.ListObjectsV2Input{Bucket: &b.name, Prefix: &b.prefix, MaxKeys: aws.Int32(1)})
		return err
	})
	if err == nil || ctx.Err() != nil {
		return err
	}
	return fmt.Errorf("blobs: %s; %s: %w", b.where, whatToDo(err, o.Region), err)
}

// whatToDo says what is wrong with a bucket that cannot be used, and what helps.
func whatToDo(err error, region string) string {
	switch code, status := codeOf(err), statusOf(err); {
	case code == "NoSuchBucket":
		return "there is no such bucket: create it, or correct the URL"
	case code == "InvalidAccessKeyId" || code == "XAdminUserNotFound": // versitygw's
		return "the storage does not know the key: check AWS_ACCESS_KEY_ID"
	case code == "SignatureDoesNotMatch":
		return "the secret does not belong to the key: check AWS_SECRET_ACCESS_KEY"
	case code == "ExpiredToken" || code == "RequestTimeTooSkewed":
		return "the keys have expired, or a clock is wrong: renew them, and check the time of this machine"
	case code == "PermanentRedirect" || code == "AuthorizationHeaderMalformed" || status == http.StatusMovedPermanently:
		if right := regionOf(err); right != "" {
			return fmt.Sprintf("it is not in region %s: say region=%s in the URL", region, right)
		}
		return fmt.Sprintf("it is not in region %s: say region=… in the URL", region)
	case status == http.StatusForbidden:
		return "the keys may not use it: they need s3:ListBucket and s3:ListBucketMultipartUploads on the bucket, s3:GetObject, s3:PutObject, s3:DeleteObject and s3:AbortMultipartUpload on its objects"
	case status == 0:
		return "it does not answer: check endpoint and network"
	case status >= 500:
		return "the storage is out of order: try again later"
	default:
		return "check the URL"
	}
}

// regionOf returns the region that a bucket is in, if the storage says so.
func regionOf(err error) string {
	if e, ok := errors.AsType[*awshttp.ResponseError](err); ok && e.Response != nil {
		return e.Response.Header.Get("X-Amz-Bucket-Region")
	}
	return ""
}
