#!/usr/bin/env bash
# The two roles that aws.yaml names: the head may start and end this cluster's machines, and both may use one bucket.
#
#   cluster/clouds/aws-roles.sh BUCKET        with the AWS command line, as somebody who may make roles
set -euo pipefail

bucket=${1:-}
[[ $bucket =~ ^[a-z0-9][a-z0-9.-]+$ ]] || { echo "name the bucket, without s3://: aws-roles.sh BUCKET" >&2; exit 2; }
account=$(aws sts get-caller-identity --query Account --output text)

machines='{"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "sts:AssumeRole",
    "Principal": {"Service": "ec2.amazonaws.com"}}]}'
storage='{"Version": "2012-10-17", "Statement": [
    {"Effect": "Allow", "Action": "s3:ListBucket", "Resource": "arn:aws:s3:::'$bucket'"},
    {"Effect": "Allow", "Action": ["s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload"],
     "Resource": "arn:aws:s3:::'$bucket'/*"}]}'
# The rights that Ray's autoscaler needs; it may end only machines that carry the cluster's name.
launch='{"Version": "2012-10-17", "Statement": [
    {"Effect": "Allow", "Action": ["ec2:Describe*", "ec2:RunInstances", "ec2:CreateTags"], "Resource": "*"},
    {"Effect": "Allow", "Action": "ec2:TerminateInstances", "Resource": "*",
     "Condition": {"StringEquals": {"ec2:ResourceTag/ray-cluster-name": "mnist-ray"}}},
    {"Effect": "Allow", "Action": "iam:PassRole", "Resource": "arn:aws:iam::'$account':role/mnist-ray-worker"}]}'

for name in mnist-ray-head mnist-ray-worker; do
    aws iam create-role --role-name $name --assume-role-policy-document "$machines"
    aws iam put-role-policy --role-name $name --policy-name storage --policy-document "$storage"
    aws iam create-instance-profile --instance-profile-name $name
    aws iam add-role-to-instance-profile --instance-profile-name $name --role-name $name
done
# The first request for spot machines needs a role of EC2's own, which the head must not make.
aws iam get-role --role-name AWSServiceRoleForEC2Spot >/dev/null 2>&1 ||
    aws iam create-service-linked-role --aws-service-name spot.amazonaws.com
aws iam put-role-policy --role-name mnist-ray-head --policy-name launch --policy-document "$launch"
