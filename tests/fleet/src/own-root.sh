# A root directory of one's own, for whoever is root in a new user namespace only. There the machine's own root shows as
# "nobody", and a host refuses directories whose owner it cannot trust: here they belong to whoever runs the test.
# Arguments: user and group to be afterwards, then the program.
set -eu
user=$1 group=$2
shift 2

root=$(mktemp -d)
mount -t tmpfs -o mode=0755 none "$root"
for entry in /*; do
    case $entry in
        /proc | /tmp | /dev) mkdir "$root$entry" ;;
        *)
            if [ -L "$entry" ]; then
                cp -P "$entry" "$root$entry"
            elif [ -d "$entry" ]; then
                mkdir "$root$entry"
                mount --rbind "$entry" "$root$entry"
            fi
            ;;
    esac
done
mount -t proc none "$root/proc"
mount -t tmpfs -o mode=1777 none "$root/tmp"
for device in null zero full random urandom; do
    : >"$root/dev/$device"
    mount --bind "/dev/$device" "$root/dev/$device"
done
mkdir "$root/dev/shm"
chmod 1777 "$root/dev/shm"

here=$PWD
mkdir "$root/before"
cd "$root"
pivot_root . before
umount -l /before
rmdir /before
cd "$here"
exec unshare --user --map-user="$user" --map-group="$group" "$@"
